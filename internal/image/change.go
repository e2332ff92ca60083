package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/smolvm/smolvm/internal/oci"
)

// ErrChange is wrapped by errors about a change of what an image says of itself that cannot be
// understood.
var ErrChange = errors.New("invalid change")

// maxChange bounds the length of a change, in bytes.
const maxChange = 64 << 10

// change is a change of what an image says of itself.
type change struct {
	keyword string // in capitals
	apply   func(*Config)
}

type changes []change

// parseChanges reads changes as a Dockerfile has them, a line each. Its error wraps ErrChange.
func parseChanges(texts []string) (changes, error) {
	var list changes
	for _, text := range texts {
		c, err := parseChange(text)
		if err != nil {
			return nil, fmt.Errorf("%w %.200q: %w", ErrChange, text, err)
		}
		list = append(list, c)
	}
	return list, nil
}

// apply returns what an image says then.
func (l changes) apply(of Config) Config {
	c := of
	// Nothing that the other image has may be written to.
	c.Env, c.ExposedPorts, c.Labels = slices.Clone(of.Env), slices.Clone(of.ExposedPorts), maps.Clone(of.Labels)
	if l.has(keywordEntrypoint) && !l.has(keywordCmd) {
		c.Cmd = nil // it was meant for the other entry point
	}
	for _, change := range l {
		change.apply(&c)
	}
	return c
}

func (l changes) has(keyword string) bool {
	return slices.ContainsFunc(l, func(c change) bool { return c.keyword == keyword })
}

const (
	keywordCmd        = "CMD"
	keywordEntrypoint = "ENTRYPOINT"
	keywords          = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER or WORKDIR"
)

func parseChange(text string) (change, error) {
	if len(text) > maxChange || strings.ContainsAny(text, "\x00\n\r") {
		return change{}, fmt.Errorf("it is no line of up to %d bytes", maxChange)
	}
	keyword, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	keyword, rest = strings.ToUpper(keyword), strings.TrimSpace(rest)
	parse, known := map[string]func(string) (func(*Config), error){
		keywordCmd: parseCmd, keywordEntrypoint: parseEntrypoint, "ENV": parseEnv, "EXPOSE": parseExpose,
		"LABEL": parseLabel, "STOPSIGNAL": parseStopSignal, "USER": parseUser, "WORKDIR": parseWorkDir,
	}[keyword]
	switch {
	case !known:
		return change{}, fmt.Errorf("it begins with none of %s", keywords)
	case rest == "":
		return change{}, fmt.Errorf("nothing follows %s", keyword)
	}
	apply, err := parse(rest)
	return change{keyword, apply}, err
}

func parseCmd(text string) (func(*Config), error) {
	argv, err := parseCommand(text)
	return func(c *Config) { c.Cmd = argv }, err
}

func parseEntrypoint(text string) (func(*Config), error) {
	argv, err := parseCommand(text)
	return func(c *Config) { c.Entrypoint = argv }, err
}

// parseCommand reads a list in JSON, or a command for the shell.
func parseCommand(text string) ([]string, error) {
	if !strings.HasPrefix(text, "[") {
		return []string{"/bin/sh", "-c", text}, nil
	}
	argv := []string{}
	decoder := json.NewDecoder(strings.NewReader(text))
	if err := decoder.Decode(&argv); err != nil {
		return nil, fmt.Errorf("it begins as a list, but is none of strings: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the list")
	}
	if slices.ContainsFunc(argv, func(arg string) bool { return strings.ContainsRune(arg, 0) }) {
		return nil, errors.New("there is a zero byte in it")
	}
	return argv, nil
}

// pair is a name with a value.
type pair struct{ name, value string }

// parsePairs reads NAME=VALUE, several times, where values may be quoted.
func parsePairs(text string) ([]pair, error) {
	words, err := splitWords(text)
	var pairs []pair
	for _, word := range words {
		name, value, found := strings.Cut(word, "=")
		if !found || name == "" {
			return nil, fmt.Errorf("%.100q is not NAME=VALUE", word)
		}
		pairs = append(pairs, pair{name, value})
	}
	return pairs, err
}

func parseEnv(text string) (func(*Config), error) {
	pairs, err := parsePairs(text)
	return func(c *Config) {
		for _, p := range pairs {
			c.Env = slices.DeleteFunc(c.Env, func(entry string) bool { return strings.HasPrefix(entry, p.name+"=") })
			c.Env = append(c.Env, p.name+"="+p.value)
		}
	}, err
}

func parseLabel(text string) (func(*Config), error) {
	pairs, err := parsePairs(text)
	return func(c *Config) {
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		for _, p := range pairs {
			c.Labels[p.name] = p.value
		}
	}, err
}

func parseExpose(text string) (func(*Config), error) {
	words := strings.Fields(text)
	for _, word := range words {
		ports, _ := oci.ExposedPorts([]string{word})
		if len(ports) == 0 || strings.HasSuffix(ports[0], "/sctp") { // which nothing here forwards
			return nil, fmt.Errorf("%.100q is no port, as in 80, 80/tcp or 53/udp", word)
		}
	}
	return func(c *Config) { c.ExposedPorts, _ = oci.ExposedPorts(append(c.ExposedPorts, words...)) }, nil
}

func parseStopSignal(text string) (func(*Config), error) {
	const highest = 64
	if n, err := strconv.Atoi(text); (err != nil || n < 1 || n > highest) && !regexp.MustCompile(`^SIG[A-Z0-9]+([+-][0-9]+)?$`).MatchString(text) {
		return nil, errors.New("it is no signal, as in SIGTERM or 15")
	}
	return func(c *Config) { c.StopSignal = text }, nil
}

func parseUser(text string) (func(*Config), error) {
	if strings.ContainsAny(text, " \t") {
		return nil, errors.New("it is no user, as in web, 1000 or web:www-data")
	}
	return func(c *Config) { c.User = text }, nil
}

func parseWorkDir(text string) (func(*Config), error) {
	words, err := splitWords(text)
	if err != nil {
		return nil, err
	}
	if len(words) != 1 || words[0] == "" {
		return nil, errors.New("it is no path; one with spaces is quoted")
	}
	return func(c *Config) {
		if path.IsAbs(words[0]) {
			c.WorkingDir = path.Clean(words[0])
		} else {
			c.WorkingDir = path.Join("/", c.WorkingDir, words[0])
		}
	}, nil
}

// splitWords splits a line at its spaces, but for those that are quoted. A backslash makes the next
// character one like any other, except within single quotes.
func splitWords(line string) ([]string, error) {
	var words []string
	var word bytes.Buffer
	var quote byte
	begun := false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && quote != '\'':
			if i++; i == len(line) {
				return nil, errors.New("nothing follows the last backslash")
			}
			word.WriteByte(line[i])
			begun = true
		case quote == 0 && (c == '"' || c == '\''):
			quote, begun = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c is not closed", quote)
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}
