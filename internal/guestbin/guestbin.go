// Package guestbin holds the guest program, which make builds before it builds
// anything that needs it.
package guestbin

import (
	"bytes"
	"debug/elf"
	"embed"
	"errors"
	"fmt"
	"io"
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

// Program returns the guest program, a static ELF executable. It is not read: it has
// megabytes, of which most starts need none.
func Program() (*io.SectionReader, error) {
	if path := os.Getenv(PathVariable); path != "" {
		program, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%w: read the file named by %s: %w", ErrMissing, PathVariable, err)
		}
		return checked(io.NewSectionReader(bytes.NewReader(program), 0, int64(len(program))), path)
	}
	program, err := files.Open(embedded)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not built in: run make build, or set %s to its path", ErrMissing, PathVariable)
	}
	info, err := program.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	// What is embedded can be read anywhere, and need not be closed.
	return checked(io.NewSectionReader(program.(io.ReaderAt), 0, info.Size()), "the guest program that is built in")
}

// checked returns the program if it is one that a kernel can start.
func checked(program *io.SectionReader, origin string) (*io.SectionReader, error) {
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := program.ReadAt(magic, 0); err != nil || string(magic) != elf.ELFMAG {
		return nil, fmt.Errorf("%w: %s is no ELF executable", ErrMissing, origin)
	}
	return program, nil
}
