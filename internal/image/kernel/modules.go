package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ErrNoModule is wrapped by errors about a module that the kernel neither has
// built in nor brings along.
var ErrNoModule = errors.New("kernel module not found")

// maxModule limits what one compressed module may unpack to.
const maxModule = 64 << 20

// Modules are the modules of one kernel.
type Modules struct {
	dir     string
	files   map[string]string // by name, below dir
	builtin map[string]bool
	needs   map[string][]string // by name: what must be loaded before
	magic   map[string]string   // by name: the version of the kernel that it is for, if it was read
}

func newModules(dir string) *Modules {
	return &Modules{dir: dir, files: map[string]string{}, builtin: map[string]bool{}, needs: map[string][]string{}, magic: map[string]string{}}
}

// OpenModules finds the modules in dir, a kernel's /lib/modules/VERSION.
func OpenModules(dir string) (*Modules, error) {
	m := newModules(dir)
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read list of built-in modules: %w", err)
	}
	for file := range strings.Lines(string(builtin)) {
		if name, ok := moduleName(strings.TrimSpace(file)); ok {
			m.builtin[name] = true
		}
	}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if name, ok := moduleName(file); ok {
			rel, err := filepath.Rel(dir, file)
			if err != nil {
				return err
			}
			m.files[name] = rel
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find kernel modules: %w", err)
	}
	return m, nil
}

// moduleName returns the name under which the kernel knows the module in a file:
// without suffixes, and with "_" where the file's name has "-".
func moduleName(file string) (name string, ok bool) {
	name = path.Base(file)
	for _, suffix := range []string{".gz", ".xz", ".zst"} {
		name = strings.TrimSuffix(name, suffix)
	}
	name, ok = strings.CutSuffix(name, ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok && name != ""
}

// File returns the path of a module's file below the directory of modules.
func (m *Modules) File(name string) (file string, ok bool) {
	file, ok = m.files[name]
	return file, ok
}

// Below returns the names of all modules whose files are below a directory, such as
// "kernel/net/bridge".
func (m *Modules) Below(dir string) []string {
	var names []string
	for name, file := range m.files {
		if strings.HasPrefix(file, dir+"/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// LoadOrder returns the modules that must be loaded to have the named ones, each
// after those that it needs. What is built in is left out; for what is in neither
// place the error wraps ErrNoModule.
func (m *Modules) LoadOrder(names ...string) ([]string, error) {
	var (
		order []string
		seen  = map[string]bool{}
		visit func(name string) error
	)
	visit = func(name string) error {
		if seen[name] || m.builtin[name] {
			return nil
		}
		seen[name] = true
		needs, err := m.requirements(name)
		if err != nil {
			return err
		}
		for _, need := range needs {
			if err := visit(need); err != nil {
				return fmt.Errorf("%w, needed by %s", err, name)
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// Available returns those of the names that the kernel brings along as modules.
func (m *Modules) Available(names ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return m.files[name] == "" })
}

// requirements reads which modules the named one needs.
func (m *Modules) requirements(name string) ([]string, error) {
	if needs, known := m.needs[name]; known {
		return needs, nil
	}
	data, err := m.Read(name)
	if err != nil {
		return nil, err
	}
	needs, err := parseRequirements(data)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", name, err)
	}
	// Soft requirements may name what this kernel has under another name or not at all.
	needs.soft = m.Available(needs.soft...)
	m.needs[name], m.magic[name] = append(needs.soft, needs.hard...), needs.version
	return m.needs[name], nil
}

// CheckVersion fails with ErrUnsuitable if one of the modules, all of which LoadOrder returned, is
// for another version of the kernel.
func (m *Modules) CheckVersion(version string, names ...string) error {
	for _, name := range names {
		if is := m.magic[name]; is != "" && is != version {
			return fmt.Errorf("%w: module %s is for Linux %s, and the kernel is Linux %s", ErrUnsuitable, name, is, version)
		}
	}
	return nil
}

// Read returns a module, decompressed, as the kernel takes it.
func (m *Modules) Read(name string) ([]byte, error) {
	file, ok := m.files[name]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoModule, name)
	}
	data, err := os.ReadFile(filepath.Join(m.dir, file))
	if err != nil {
		return nil, fmt.Errorf("read kernel module: %w", err)
	}
	data, err = decompress(path.Ext(file), data)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", name, err)
	}
	return data, nil
}

func decompress(suffix string, data []byte) ([]byte, error) {
	var (
		r   io.Reader
		err error
	)
	switch suffix {
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(data))
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(data))
	case ".zst":
		var d *zstd.Decoder
		d, err = zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxModule))
		if err == nil {
			defer d.Close()
		}
		r = d
	default:
		return data, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return readAtMost(r, maxModule)
}

// requirements are what a module says of itself.
type requirements struct {
	hard []string // "depends=": it has no symbols without them
	soft []string // "softdep=pre:": it works better, or only then, with them
	// version is that of the kernel that the module is for, from "vermagic=".
	version string
}

// parseRequirements reads the section .modinfo of a module: strings "key=value", each
// ended by a zero byte.
func parseRequirements(module []byte) (requirements, error) {
	var needs requirements
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return needs, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	section := file.Section(".modinfo")
	if section == nil {
		return needs, fmt.Errorf("%w: no .modinfo", ErrFormat)
	}
	if section.Size > uint64(len(module)) {
		return needs, fmt.Errorf("%w: .modinfo is larger than the file", ErrFormat)
	}
	info, err := section.Data()
	if err != nil {
		return needs, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					needs.hard = append(needs.hard, strings.ReplaceAll(name, "-", "_"))
				}
			}
		case "vermagic":
			needs.version, _, _ = strings.Cut(value, " ")
		case "softdep":
			needs.soft = append(needs.soft, softRequirements(value)...)
		}
	}
	return needs, nil
}

// softRequirements returns the modules after "pre:" and before "post:".
func softRequirements(value string) []string {
	var names []string
	pre := false
	for word := range strings.FieldsSeq(value) {
		switch word {
		case "pre:":
			pre = true
		case "post:":
			pre = false
		default:
			if pre {
				names = append(names, strings.ReplaceAll(word, "-", "_"))
			}
		}
	}
	return names
}
