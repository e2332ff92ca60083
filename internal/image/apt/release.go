// Package apt reads how a Debian-like host gets its packages: its package
// sources in both formats, its settings and its release. It runs nothing.
package apt

import "strings"

// Release is what /etc/os-release says.
type Release struct {
	ID       string // "debian"
	Codename string // "bookworm"
	Name     string // "Debian GNU/Linux 12 (bookworm)"
}

// ParseRelease reads the contents of an os-release file. Fields that it
// lacks are empty.
func ParseRelease(data []byte) Release {
	var r Release
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = unquoteShell(value)
		switch key {
		case "ID":
			r.ID = value
		case "VERSION_CODENAME":
			r.Codename = value
		case "PRETTY_NAME":
			r.Name = value
		}
	}
	return r
}

// unquoteShell undoes the quotes and backslashes that os-release allows.
func unquoteShell(s string) string {
	if len(s) < 2 || s[0] != s[len(s)-1] || (s[0] != '"' && s[0] != '\'') {
		return s
	}
	quote, s := s[0], s[1:len(s)-1]
	if quote == '\'' {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
