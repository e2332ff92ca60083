package rootfs

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// Info tells what is in a tree.
type Info struct {
	Mode     uint32 // type and permissions, as Unix numbers them
	UID, GID uint32
	Size     int64 // of a regular file, in bytes
	Modified time.Time
	Target   string // of a symbolic link
}

// IsDir tells whether it is a directory.
func (i *Info) IsDir() bool { return i.Mode&ext4.TypeMask == ext4.TypeDirectory }

// IsRegular tells whether it is a regular file.
func (i *Info) IsRegular() bool { return i.Mode&ext4.TypeMask == ext4.TypeRegular }

// Lookup returns what a path leads to within the tree. Symbolic links are followed. An
// error wraps fs.ErrNotExist, syscall.ENOTDIR or syscall.ELOOP.
func (t *Tree) Lookup(path string) (Info, error) { return t.lookup(path, true) }

// LookupLink is Lookup, but returns a symbolic link that the whole path is.
func (t *Tree) LookupLink(path string) (Info, error) { return t.lookup(path, false) }

func (t *Tree) lookup(path string, last bool) (Info, error) {
	n, err := t.find(path, last)
	if err != nil {
		return Info{}, failed(path, err)
	}
	return Info{Mode: n.mode, UID: n.uid, GID: n.gid, Size: n.size, Modified: n.modified, Target: n.target}, nil
}

// maxRead is how large a file may be that ReadFile reads, in bytes.
const maxRead = 16 << 20

// ReadFile returns what is in a regular file of at most 16 MiB. Symbolic links are
// followed. Files right in /etc are at hand; for others their layer is read again, from
// its beginning to its end. Errors are those of Lookup and Read.
func (t *Tree) ReadFile(ctx context.Context, path string) ([]byte, error) {
	n, err := t.find(path, true)
	switch {
	case err != nil:
		return nil, failed(path, err)
	case n.isDir():
		return nil, failed(path, syscall.EISDIR)
	case !n.isRegular():
		return nil, failed(path, fmt.Errorf("it is no regular file: %w", fs.ErrInvalid))
	case n.size > maxRead:
		return nil, failed(path, tooLarge("it has %d bytes", n.size))
	}
	if data, found := t.kept[n]; found {
		return append([]byte{}, data...), nil
	}
	data := make([]byte, n.size)
	if n.open == nil {
		err = t.readContents(ctx, int(n.from), []*inode{n}, &counter{}, func(_ *inode, r io.Reader) error {
			_, err := io.ReadFull(r, data)
			return err
		})
	} else {
		err = readOpened(n, data)
	}
	if err != nil {
		return nil, failed(path, err)
	}
	return data, nil
}

func readOpened(n *inode, data []byte) error {
	r, err := n.open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadFull(r, data)
	return err
}

// ReadDir returns the names in the directory that a path leads to, sorted. Errors are those of
// Lookup.
func (t *Tree) ReadDir(path string) ([]string, error) {
	n, err := t.find(path, true)
	if err == nil && !n.isDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, failed(path, err)
	}
	return slices.Sorted(maps.Keys(n.children)), nil
}
