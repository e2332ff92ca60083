package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// ErrUnsuitable is wrapped by errors about a kernel that no machine can start.
var ErrUnsuitable = errors.New("kernel cannot be started")

// Parse returns the ELF kernel of a file that is one, or a bzImage.
func Parse(ctx context.Context, file []byte) ([]byte, error) {
	if isKernelELF(file) {
		return file, nil
	}
	return VMLinux(ctx, file)
}

// Version returns the version that an ELF kernel says it is, such as "6.1.0-18-amd64".
func Version(vmlinux []byte) (string, error) {
	banner := regexp.MustCompile(`Linux version ([0-9][!-~]{0,99}) \(`)
	match := banner.FindSubmatch(vmlinux)
	if match == nil || bytes.ContainsAny(match[1], `/\`) {
		return "", fmt.Errorf("%w: it does not say its version", ErrFormat)
	}
	return string(match[1]), nil
}

// CheckEntry fails with ErrUnsuitable unless a machine without firmware can start the ELF kernel: a
// note in it says where that begins.
func CheckEntry(vmlinux []byte) error {
	file, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_NOTE && p.Filesz <= uint64(len(vmlinux)) {
			notes := make([]byte, p.Filesz)
			if _, err := p.ReadAt(notes, 0); err == nil && hasEntryNote(notes) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: it has no entry for machines without firmware (CONFIG_PVH)", ErrUnsuitable)
}

// hasEntryNote looks for the note by which Xen, and QEMU, find the entry.
func hasEntryNote(notes []byte) bool {
	const entryType, header = 18, 12
	le := binary.LittleEndian
	for len(notes) >= header {
		name, desc, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		notes = notes[header:]
		nameEnd, end := aligned(name), aligned(name)+aligned(desc)
		if end > uint64(len(notes)) || name > nameEnd {
			return false
		}
		if kind == entryType && string(bytes.TrimRight(notes[:name], "\x00")) == "Xen" {
			return true
		}
		notes = notes[end:]
	}
	return false
}

// aligned rounds up to what notes are aligned to.
func aligned(n uint64) uint64 { return (n + 3) &^ 3 }

// Where a kernel has its own configuration.
const (
	configBegin = "IKCFG_ST"
	configEnd   = "IKCFG_ED"
	maxConfig   = 16 << 20
)

// BuiltIn returns what an ELF kernel has built in, for which OpenModules has no directory. It knows
// that of the drivers by the options of the configuration that some kernels have in them.
func BuiltIn(vmlinux []byte, drivers map[string]string) (*Modules, error) {
	_, rest, found := bytes.Cut(vmlinux, []byte(configBegin))
	packed, _, whole := bytes.Cut(rest, []byte(configEnd))
	if !found || !whole {
		return nil, fmt.Errorf("%w: it has no list of what is built in", ErrNoModule)
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("%w: its configuration: %w", ErrFormat, err)
	}
	config, err := readAtMost(unpacked, maxConfig)
	if err != nil {
		return nil, err
	}
	m := newModules("")
	options := map[string]bool{}
	for line := range strings.Lines(string(config)) {
		if option, on := strings.CutSuffix(strings.TrimSpace(line), "=y"); on {
			options[option] = true
		}
	}
	for name, option := range drivers {
		m.builtin[name] = options[option]
	}
	return m, nil
}
