package qemu

import (
	"errors"
	"fmt"
	"os/exec"
)

// NotInstalledError says that a program is missing, and how to get it.
type NotInstalledError struct {
	Program string
	Package string // of Debian
	Err     error
}

func (e *NotInstalledError) Error() string {
	return fmt.Sprintf("%s is not installed: install the package %s", e.Program, e.Package)
}

func (e *NotInstalledError) Unwrap() error { return e.Err }

// find returns the path of a program that comes with a Debian package.
func find(program, debianPackage string) (string, error) {
	path, err := exec.LookPath(program)
	if errors.Is(err, exec.ErrDot) {
		// Never run what happens to lie in the current directory.
		return "", err
	}
	if err != nil {
		return "", &NotInstalledError{Program: program, Package: debianPackage, Err: err}
	}
	return path, nil
}
