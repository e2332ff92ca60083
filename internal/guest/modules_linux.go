package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// loadModules loads the kernel modules that list names, one path per line, in
// that order. It goes on after an error, since a later one shows what is missing,
// and returns all of them.
func loadModules(list string) error {
	data, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel that has all it needs
	}
	if err != nil {
		return fmt.Errorf("read list of modules: %w", err)
	}
	var errs []error
	for _, path := range strings.Fields(string(data)) {
		if err := loadModule(path); err != nil {
			errs = append(errs, fmt.Errorf("load module %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// moduleSuffix is what the name of a module that is not compressed ends with.
const moduleSuffix = ".ko"

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(path) != moduleSuffix {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// modulesDir is where the root file system has modules, for each version of the kernel.
const modulesDir = "/lib/modules"

// ensureFilesystem has the kernel know a type of file system, whose module has the same name.
func ensureFilesystem(name string) error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("read types of file systems: %w", err)
	}
	if slices.Contains(strings.Fields(string(known)), name) {
		return nil
	}
	var system unix.Utsname
	if err := unix.Uname(&system); err != nil {
		return fmt.Errorf("find kernel modules: %w", err)
	}
	dir := filepath.Join(modulesDir, unix.ByteSliceToString(system.Release[:]))
	list, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return fmt.Errorf("the kernel has no file system %s: %w", name, err)
	}
	files := moduleFiles(list, name)
	if len(files) == 0 {
		return fmt.Errorf("the kernel has no file system %s, and there is no module in %s", name, dir)
	}
	for _, file := range files {
		if err := loadModule(filepath.Join(dir, file)); err != nil {
			return fmt.Errorf("load module %s: %w", file, err)
		}
	}
	return nil
}

// moduleFiles returns the file of a module and before it those of what it needs, in the order in
// which to load them, as a list of dependencies that depmod made tells. It is empty if the module
// is not in there.
func moduleFiles(list []byte, name string) []string {
	for line := range bytes.Lines(list) {
		file, needs, ok := strings.Cut(string(line), ":")
		base, _, _ := strings.Cut(path.Base(file), moduleSuffix)
		if ok && base == name {
			files := append([]string{file}, strings.Fields(needs)...)
			slices.Reverse(files)
			return files
		}
	}
	return nil
}
