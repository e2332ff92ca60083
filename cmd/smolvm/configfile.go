package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/BurntSushi/toml"
)

// configFile is what the configuration file says.
type configFile struct {
	path   string
	values map[string]any // by the keys of settings, with the types that those have
}

// maxConfigFile is the most that a configuration file may have, in bytes.
const maxConfigFile = 1 << 20

// configPath is where the configuration file is, or would be: $SMOLVM_CONFIG, for root
// /etc/smolvm/config.toml, for others smolvm/config.toml under $XDG_CONFIG_HOME or ~/.config.
func configPath() (string, error) {
	if path := os.Getenv("SMOLVM_CONFIG"); path != "" {
		return path, nil
	}
	if os.Geteuid() == 0 {
		return "/etc/smolvm/config.toml", nil
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "smolvm", "config.toml"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find configuration file: %w", err)
	}
	return filepath.Join(home, ".config", "smolvm", "config.toml"), nil
}

// readConfigFile reads the configuration file. One that is not there says nothing.
func readConfigFile() (configFile, error) {
	path, err := configPath()
	if err != nil {
		return configFile{}, nil //nolint:nilerr // who has no home has no file in it
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return configFile{path: path}, nil
	}
	if err != nil {
		return configFile{}, fmt.Errorf("read configuration file: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	data, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err == nil && len(data) > maxConfigFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxConfigFile)
	}
	if err != nil {
		return configFile{}, fmt.Errorf("read configuration file: %w", err)
	}
	values, err := parseConfig(data)
	if err != nil {
		return configFile{}, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return configFile{path, values}, nil
}

// parseConfig reads the settings that a configuration file has.
func parseConfig(data []byte) (map[string]any, error) {
	var tree map[string]toml.Primitive
	meta, err := toml.Decode(string(data), &tree)
	if err != nil {
		return nil, lineError(err)
	}
	known := make(map[string]setting)
	for _, s := range settings() {
		known[s.key] = s
	}
	values := make(map[string]any)
	for _, key := range meta.Keys() { // in the order of the file
		s, ok := known[key[0]]
		if !ok {
			return nil, unknownKey(meta, tree[key[0]])
		}
		value := fileValue{setting: s}
		if err := meta.PrimitiveDecode(tree[key[0]], &value); err != nil {
			return nil, lineError(err)
		}
		values[s.key] = value.value
	}
	return values, nil
}

// fileValue takes a setting's value from the file.
type fileValue struct {
	setting
	value any
}

// UnmarshalTOML implements toml.Unmarshaler, which lets the error tell the line.
func (v *fileValue) UnmarshalTOML(data any) error {
	if n, ok := data.(int64); ok {
		data = int(n)
	}
	if err := v.check(data); err != nil {
		return err
	}
	if path, _ := data.(string); v.key == "data_dir" && !filepath.IsAbs(path) {
		return fmt.Errorf("data_dir must be an absolute path, not %q", path)
	}
	v.value = data
	return nil
}

// refused takes no value: it is for the line and the whole key in the error.
type refused struct{}

// UnmarshalTOML implements toml.Unmarshaler.
func (refused) UnmarshalTOML(any) error { return errors.New("unknown key") }

// unknownKey returns the error about a key that is no setting's, or the first one below it: a
// table may have no line of its own.
func unknownKey(meta toml.MetaData, value toml.Primitive) error {
	var below map[string]toml.Primitive
	if err := meta.PrimitiveDecode(value, &below); err == nil && len(below) > 0 {
		var keys []string
		for key := range below {
			keys = append(keys, key)
		}
		return unknownKey(meta, below[slices.Min(keys)])
	}
	err := meta.PrimitiveDecode(value, &refused{})
	if at, ok := errors.AsType[toml.ParseError](err); ok {
		at.Message = fmt.Sprintf("there is no setting %q", at.LastKey)
		err = at
	}
	return lineError(err)
}

// lineError words an error of the file's format.
func lineError(err error) error {
	at, ok := errors.AsType[toml.ParseError](err)
	if !ok {
		return err
	}
	// At the end of a file the line before may be meant, of which the first line has none.
	return fmt.Errorf("line %d: %s", max(1, at.Position.Line), at.Message)
}
