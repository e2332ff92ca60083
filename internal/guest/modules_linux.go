package guest

import (
	"errors"
	"fmt"
	"os"
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

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
