package apt

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Setting is one setting of apt, such as Acquire::Retries "3".
type Setting struct {
	Name, Value string
}

// ParseConfig reads the output of "apt-config dump". Lines that are no setting
// are left out.
func ParseConfig(dump []byte) []Setting {
	var settings []Setting
	for line := range strings.Lines(string(dump)) {
		name, value, found := strings.Cut(strings.TrimSpace(line), " ")
		if !found || name == "" || len(value) < 3 || value[0] != '"' || !strings.HasSuffix(value, `";`) {
			continue
		}
		settings = append(settings, Setting{Name: unescape(name), Value: unescape(value[1 : len(value)-2])})
	}
	return settings
}

// unescape undoes the %XX of a dump. What is no such escape stays as it is.
func unescape(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return s
}

// FormatConfig writes settings as an apt.conf file. Those that the format cannot
// express are left out.
func FormatConfig(settings []Setting) []byte {
	var b strings.Builder
	for _, s := range settings {
		if strings.ContainsAny(s.Value, "\"\n\r") || strings.ContainsAny(s.Name, " \t\r\n\";{}#") {
			continue
		}
		b.WriteString(s.Name + " \"" + s.Value + "\";\n")
	}
	return []byte(b.String())
}

// Fetching returns the settings that say how packages are fetched: through which
// proxies, how often it is tried, and what is checked.
func Fetching(settings []Setting) []Setting {
	prefixes := []string{
		"acquire::http::", "acquire::https::", "acquire::check-date", "acquire::check-valid-until",
		"acquire::min-validtime", "acquire::max-validtime", "acquire::retries", "acquire::forceipv",
		"acquire::allowinsecurerepositories", "acquire::allowweakrepositories",
	}
	var kept []Setting
	for _, s := range settings {
		name := strings.ToLower(s.Name)
		if s.Value != "" && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			kept = append(kept, s)
		}
	}
	return kept
}

// EnvironmentProxies returns the settings that say what http_proxy and https_proxy
// say, which apt heeds too where no setting names a proxy.
func EnvironmentProxies(settings []Setting, getenv func(string) string) []Setting {
	var proxies []Setting
	for _, scheme := range []string{"http", "https"} {
		name := "Acquire::" + scheme + "::Proxy"
		set := slices.ContainsFunc(settings, func(s Setting) bool { return strings.EqualFold(s.Name, name) })
		if proxy := getenv(scheme + "_proxy"); proxy != "" && !set {
			proxies = append(proxies, Setting{Name: name, Value: proxy})
		}
	}
	return proxies
}

// ForGuest returns those of the settings that hold in another machine too: not what
// names this host's loopback, its files or its programs.
func ForGuest(settings []Setting) []Setting {
	return slices.DeleteFunc(slices.Clone(settings), func(s Setting) bool {
		name := strings.ToLower(s.Name)
		if strings.Contains(name, "::proxy-auto") || strings.HasPrefix(s.Value, "/") {
			return true
		}
		return strings.Contains(name, "::proxy") && isLoopback(s.Value)
	})
}

// isLoopback tells whether the URL leads to the machine that it is read on.
func isLoopback(proxy string) bool {
	u, err := url.Parse(proxy)
	if err != nil {
		return false
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr.Unmap().IsLoopback() || addr.IsUnspecified())
}
