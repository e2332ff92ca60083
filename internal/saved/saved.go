// Package saved keeps machines that were saved, so that others go on from there: a directory with
// the guest's memory, the state of the devices and what the guest said on its console, and
// perhaps its disk.
//
// A saved machine never changes. It is checked before it is used: its files' sizes and times every
// time, what they hold once after each boot of the host, when they come from the disk anyway.
package saved

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/vmm"
)

// The files of a saved machine.
const (
	memoryFile = "memory"
	stateFile  = "state"
	diskFile   = "disk.qcow2"
	// consoleFile is called as the monitor calls it, which writes it into a template's draft.
	consoleFile = vmm.ConsoleLog
)

func fileNames() []string { return []string{memoryFile, stateFile, diskFile, consoleFile} }

// Machine is a machine that was saved. Its files must not be written to; they stay what they are
// even if it is removed or replaced.
type Machine struct {
	Memory  *os.File // the guest's memory
	State   *os.File // that of the devices
	Disk    *os.File // an overlay, which the guest has mounted; nil: it is elsewhere
	Console *os.File // what the guest said on its console
	// Shape is what a machine must have to go on from here, as Draft.Shape told.
	Shape vmm.Shape
}

// Close closes the files. What runs on them already goes on.
func (m *Machine) Close() error {
	var errs []error
	for _, f := range []*os.File{m.Memory, m.State, m.Disk, m.Console} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// From is the machine as the monitor wants it.
func (m *Machine) From() (*vmm.Saved, error) {
	console, err := io.ReadAll(m.Console)
	if err != nil {
		return nil, fmt.Errorf("read saved console: %w", err)
	}
	return &vmm.Saved{Memory: m.Memory, State: m.State, Console: console}, nil
}

// Draft is a saved machine in the making: the paths of the files that are to be made, in a directory
// in which there may be others. The disk need not be made.
type Draft struct {
	Dir, Memory, State, Disk, Console string
	Shape                             vmm.Shape // see Machine
}

// NewDraft is a draft in dir, which the caller makes.
func NewDraft(dir string) *Draft {
	in := func(name string) string { return filepath.Join(dir, name) }
	return &Draft{Dir: dir, Memory: in(memoryFile), State: in(stateFile), Disk: in(diskFile), Console: in(consoleFile)}
}

// Sync writes the files out to the disk, and the directory.
func Sync(dir string) error {
	names := append([]string{manifestFile, "."}, fileNames()...)
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return fmt.Errorf("write saved machine out: %w", err)
		}
	}
	return nil
}

// Share makes the directory to the same saved machine as from, but for the disk: it gets the same
// files, which are there until both are removed. If it fails, some may be there.
func Share(from, to string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("share saved machine: %w", err)
		}
	}()
	source, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer source.Close() //nolint:errcheck // only read from
	m, err := readManifest(source)
	if err != nil {
		return err
	}
	delete(m.Files, diskFile)
	for name := range m.Files {
		if err := os.Link(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	target, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	return errors.Join(m.write(target), target.Close())
}
