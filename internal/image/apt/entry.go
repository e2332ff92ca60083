package apt

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Entry is one package source.
type Entry struct {
	Types      []string // "deb", "deb-src"
	URIs       []string
	Suites     []string
	Components []string
	// Options are the other fields under their deb822 names, in the order found.
	Options []Field
}

// Field is one field of an Entry. A value of several lines has them separated
// by "\n" and without the leading space of the file.
type Field struct {
	Name, Value string
}

const (
	fieldArchitectures = "Architectures"
	// fieldSignedBy names the keys that a source's index must be signed with:
	// files, fingerprints or a whole key.
	fieldSignedBy = "Signed-By"
)

// Option returns the value of the option with that name, or "".
func (e Entry) Option(name string) string {
	for _, f := range e.Options {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// Keyrings returns the key files that the entry names.
func (e Entry) Keyrings() []string {
	var files []string
	for _, word := range strings.FieldsFunc(e.Option(fieldSignedBy), isListSeparator) {
		if filepath.IsAbs(word) {
			files = append(files, word)
		}
	}
	return files
}

func isListSeparator(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }

// ReadSources reads all package sources configured in etc, which is
// /etc/apt on a host.
func ReadSources(etc string) ([]Entry, error) {
	parts, err := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	if err != nil {
		return nil, fmt.Errorf("list package sources: %w", err)
	}
	var entries []Entry
	for _, path := range append([]string{filepath.Join(etc, "sources.list")}, parts...) {
		parse := ParseList
		switch filepath.Ext(path) {
		case ".list":
		case ".sources":
			parse = ParseSources
		default:
			continue
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read package sources: %w", err)
		}
		more, err := parse(data)
		if err != nil {
			return nil, fmt.Errorf("read package sources in %s: %w", path, err)
		}
		entries = append(entries, more...)
	}
	return entries, nil
}

// Format writes the entries in the deb822 format.
func Format(entries []Entry) []byte {
	var b strings.Builder
	for i, e := range entries {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "Types: %s\n", strings.Join(e.Types, " "))
		fmt.Fprintf(&b, "URIs: %s\n", strings.Join(e.URIs, " "))
		fmt.Fprintf(&b, "Suites: %s\n", strings.Join(e.Suites, " "))
		if len(e.Components) > 0 {
			fmt.Fprintf(&b, "Components: %s\n", strings.Join(e.Components, " "))
		}
		for _, f := range e.Options {
			lines := strings.Split(f.Value, "\n")
			fmt.Fprintf(&b, "%s: %s\n", f.Name, lines[0])
			for _, line := range lines[1:] {
				fmt.Fprintf(&b, " %s\n", line)
			}
		}
	}
	return []byte(b.String())
}

// Select returns the sources of binary packages for the architecture that are the
// distribution's own, for its release r: of each entry the suites of the release, its updates and its
// security fixes, and the component "main". Where entries signed with the
// distribution's own keys provide the release, what others sign is left out.
// Only URIs that a guest can reach too are kept.
func Select(entries []Entry, r Release, architecture string) []Entry {
	suites := []string{r.Codename, r.Codename + "-updates", r.Codename + "-security"}
	var kept []Entry
	for _, e := range entries {
		if only := strings.Fields(e.Option(fieldArchitectures)); len(only) > 0 && !slices.Contains(only, architecture) {
			continue
		}
		e.Suites = intersect(e.Suites, suites)
		e.Components = intersect(e.Components, []string{"main"})
		e.Types = intersect(e.Types, []string{"deb"})
		e.URIs = slices.DeleteFunc(slices.Clone(e.URIs), func(uri string) bool {
			return !strings.HasPrefix(uri, "http://") && !strings.HasPrefix(uri, "https://")
		})
		if len(e.Suites) > 0 && len(e.Components) > 0 && len(e.Types) > 0 && len(e.URIs) > 0 {
			kept = append(kept, e)
		}
	}
	own := func(e Entry) bool { return r.signs(e) }
	if slices.ContainsFunc(kept, func(e Entry) bool { return own(e) && slices.Contains(e.Suites, r.Codename) }) {
		kept = slices.DeleteFunc(kept, func(e Entry) bool { return !own(e) })
	}
	return kept
}

// signs tells whether the entry asks for the distribution's keys: by name, or by
// leaving it to apt.
func (r Release) signs(e Entry) bool {
	if e.Option(fieldSignedBy) == "" {
		return true
	}
	return slices.ContainsFunc(e.Keyrings(), func(file string) bool {
		return strings.HasPrefix(filepath.Base(file), r.ID+"-archive-")
	})
}

func intersect(have, want []string) []string {
	var both []string
	for _, s := range have {
		if slices.Contains(want, s) && !slices.Contains(both, s) {
			both = append(both, s)
		}
	}
	return both
}

// mirrorList is the scheme of a URI that names a local file with the real URIs.
const mirrorList = "mirror+file:"

// ExpandMirrors replaces URIs that name a list of mirrors on this host, as cloud
// images use them, by the first mirror in the list.
func ExpandMirrors(entries []Entry, readFile func(string) ([]byte, error)) ([]Entry, error) {
	expanded := slices.Clone(entries)
	for i, e := range expanded {
		e.URIs = slices.Clone(e.URIs)
		for j, uri := range e.URIs {
			path, found := strings.CutPrefix(uri, mirrorList)
			if !found {
				continue
			}
			path = "/" + strings.TrimLeft(path, "/")
			data, err := readFile(path)
			if err != nil {
				return nil, fmt.Errorf("read list of mirrors: %w", err)
			}
			mirror := firstMirror(data)
			if mirror == "" {
				return nil, fmt.Errorf("read list of mirrors: %s has none", path)
			}
			e.URIs[j] = mirror
		}
		expanded[i] = e
	}
	return expanded, nil
}

func firstMirror(data []byte) string {
	for line := range strings.Lines(string(data)) {
		if words := strings.Fields(line); len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			return words[0]
		}
	}
	return ""
}
