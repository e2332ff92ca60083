package apt

import (
	"fmt"
	"strings"
	"unicode"
)

// optionField returns the deb822 name of an option of the one-line format.
func optionField(key string) string {
	if name, found := strings.CutSuffix(key, "+"); found {
		return optionField(name) + "-Add"
	}
	if name, found := strings.CutSuffix(key, "-"); found {
		return optionField(name) + "-Remove"
	}
	switch strings.ToLower(key) {
	case "arch":
		return fieldArchitectures
	case "lang":
		return "Languages"
	case "target":
		return "Targets"
	case "signed-by":
		return fieldSignedBy
	}
	return key
}

// ParseList reads the one-line format: "deb [option=value] uri suite component...".
func ParseList(data []byte) ([]Entry, error) {
	var entries []Entry
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		entry, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

func parseLine(line string) (Entry, error) {
	var e Entry
	kind, rest := cutWord(line)
	if kind != "deb" && kind != "deb-src" {
		return e, fmt.Errorf("unknown type %q", kind)
	}
	e.Types = []string{kind}
	if options, found := strings.CutPrefix(rest, "["); found {
		options, after, closed := strings.Cut(options, "]")
		if !closed {
			return e, fmt.Errorf("options without an end")
		}
		rest = after
		for _, option := range strings.Fields(options) {
			key, value, found := strings.Cut(option, "=")
			name := optionField(key)
			if !found || !isFieldName(name) || isEntryField(name) {
				return e, fmt.Errorf("malformed option %q", option)
			}
			if value != "" {
				e.Options = append(e.Options, Field{Name: name, Value: listValue(name, value)})
			}
		}
	}
	words := strings.Fields(rest)
	if len(words) < 2 {
		return e, fmt.Errorf("URI or suite missing")
	}
	e.URIs, e.Suites, e.Components = words[:1], words[1:2], words[2:]
	return e, nil
}

// isFieldName keeps out what would read as something else when it is written again.
func isFieldName(name string) bool {
	return name != "" && name[0] != '#' && !strings.ContainsRune(name, ':') &&
		!strings.ContainsFunc(name, unicode.IsSpace)
}

// isEntryField tells whether the field is no option but has its place in an Entry.
func isEntryField(name string) bool {
	switch strings.ToLower(name) {
	case "types", "uris", "suites", "components", "enabled":
		return true
	}
	return false
}

// listValue turns the commas of a one-line option into the spaces of deb822.
func listValue(name, value string) string {
	switch strings.TrimSuffix(strings.TrimSuffix(name, "-Add"), "-Remove") {
	case fieldArchitectures, "Languages", "Targets", fieldSignedBy:
		return strings.Join(strings.FieldsFunc(value, isListSeparator), " ")
	}
	return value
}

func cutWord(s string) (word, rest string) {
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimSpace(s[i:])
	}
	return s, ""
}

// ParseSources reads the deb822 format: stanzas of "Field: value", separated by
// empty lines. Entries that are not enabled are left out.
func ParseSources(data []byte) ([]Entry, error) {
	var (
		entries []Entry
		stanza  []Field
		number  int
	)
	finish := func() error {
		if stanza == nil {
			return nil
		}
		entry, enabled, err := stanzaEntry(stanza)
		stanza = nil
		if err != nil {
			return fmt.Errorf("stanza before line %d: %w", number, err)
		}
		if enabled {
			entries = append(entries, entry)
		}
		return nil
	}
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimRightFunc(line, unicode.IsSpace)
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			if err := finish(); err != nil {
				return nil, err
			}
		case line[0] == ' ' || line[0] == '\t':
			if stanza == nil {
				return nil, fmt.Errorf("line %d: continues no field", number)
			}
			last := &stanza[len(stanza)-1]
			last.Value += "\n" + strings.TrimSpace(line)
		default:
			name, value, found := strings.Cut(line, ":")
			if !found || !isFieldName(name) {
				return nil, fmt.Errorf("line %d: no field", number)
			}
			stanza = append(stanza, Field{Name: name, Value: strings.TrimSpace(value)})
		}
	}
	number++
	return entries, finish()
}

func stanzaEntry(stanza []Field) (e Entry, enabled bool, err error) {
	enabled = true
	for _, f := range stanza {
		words := strings.Fields(f.Value)
		switch strings.ToLower(f.Name) {
		case "types":
			e.Types = words
		case "uris":
			e.URIs = words
		case "suites":
			e.Suites = words
		case "components":
			e.Components = words
		case "enabled":
			enabled = isTrue(f.Value)
		default:
			e.Options = append(e.Options, f)
		}
	}
	if len(e.Types) == 0 || len(e.URIs) == 0 || len(e.Suites) == 0 {
		return e, false, fmt.Errorf("types, URIs or suites missing")
	}
	return e, enabled, nil
}

// isTrue knows the words that apt takes for no; everything else is yes.
func isTrue(value string) bool {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "no", "false", "without", "off", "disable", "0":
		return false
	}
	return true
}
