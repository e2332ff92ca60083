// Package archive carries files and directories as a stream: a tar archive in PAX
// format that says at its beginning how much it holds, and at its end that it is whole.
// [Pack] makes one and [Extract] takes it.
//
// An archive may come from a guest: Extract trusts nothing in it.
package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"
)

// ErrMalformed is wrapped by errors that say that an archive is none, or is cut short.
var ErrMalformed = errors.New("malformed archive")

// An archive begins and ends with a global PAX header that has one of these records.
const (
	sizeRecord = "SMOLVM.size" // the number of bytes in all files together
	endRecord  = "SMOLVM.end"
)

// bufferSize is how much is read or written at once.
const bufferSize = 128 << 10

// contents is the name of a directory whose contents are meant, not itself.
const contents = "."

// progress tells of bytes that are copied. Its zero value tells nobody.
type progress struct {
	report      func(done, total int64)
	done, total int64
}

func (p *progress) add(n int) {
	p.done += int64(n)
	if p.report != nil {
		p.report(p.done, max(p.done, p.total))
	}
}

// The bits of a mode, as tar and Unix number them, and as Go does.
const permissions, setUID, setGID, sticky = 0o777, 0o4000, 0o2000, 0o1000

func modeBits(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: setUID, fs.ModeSetgid: setGID, fs.ModeSticky: sticky} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

func fileMode(bits int64) fs.FileMode {
	mode := fs.FileMode(bits & permissions)
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: setUID, fs.ModeSetgid: setGID, fs.ModeSticky: sticky} {
		if bits&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// failed says which file something failed for, and why, without what the system calls
// were given.
func failed(name string, err error) error {
	return fmt.Errorf("%s: %w", display(name), reason(err))
}

func reason(err error) error {
	switch e := err.(type) {
	case *fs.PathError:
		return e.Err
	case *os.LinkError:
		return e.Err
	}
	return err
}

// display is a name as people may read it in a terminal: names hold any byte.
func display(name string) string {
	plain := utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return !strconv.IsPrint(r) })
	if plain && name != "" {
		return name
	}
	return strconv.Quote(name)
}

// noDirectory says that a directory which must be there is not.
func noDirectory(path string) error {
	return fmt.Errorf("%w: %s", errNoDirectory, display(path))
}

// errNoDirectory is fs.ErrNotExist in other words.
var errNoDirectory error = noDirectoryError{}

type noDirectoryError struct{}

func (noDirectoryError) Error() string        { return "no such directory" }
func (noDirectoryError) Is(target error) bool { return target == fs.ErrNotExist }

// meansDirectory tells whether a path is written as a directory's.
func meansDirectory(path string) bool {
	return strings.HasSuffix(path, "/") || meansContents(path)
}

// meansContents tells whether a path means what a directory has in it.
func meansContents(path string) bool {
	last := path[strings.LastIndexByte(path, '/')+1:]
	return last == "." || last == ".." || filepath.Clean(path) == "/"
}

var errSpecial = fmt.Errorf("it is neither a file nor a directory: %w", syscall.EINVAL)
