// Package guestbin holds the guest program, which make builds before it builds
// anything that needs it.
package guestbin

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"os"
)

// ErrMissing is wrapped by errors about a guest program that is not there.
var ErrMissing = errors.New("guest program is missing")

// PathVariable names the environment variable with the path of a guest program to use
// instead of the one that is built in.
const PathVariable = "SMOLVM_GUEST"

// The directory always has a file, so that the package compiles without the program.
//
//go:embed bin
var files embed.FS

const embedded = "bin/smolvm-guest"

// Program returns the guest program, a static ELF executable. The caller must not
// change it.
func Program() ([]byte, error) {
	if path := os.Getenv(PathVariable); path != "" {
		program, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%w: read the file named by %s: %w", ErrMissing, PathVariable, err)
		}
		return checked(program, path)
	}
	program, err := files.ReadFile(embedded)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not built in: run make build, or set %s to its path", ErrMissing, PathVariable)
	}
	return checked(program, "the guest program that is built in")
}

// checked returns the program if it is one that a kernel can start.
func checked(program []byte, origin string) ([]byte, error) {
	if !bytes.HasPrefix(program, []byte("\x7fELF")) {
		return nil, fmt.Errorf("%w: %s is no ELF executable", ErrMissing, origin)
	}
	return program, nil
}
