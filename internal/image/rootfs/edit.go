package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// What is put into a tree belongs to root, has no date, and goes where symbolic links in
// the tree lead, never out of it. Directories that are missing on the way are made, with
// mode 0755. A file or link replaces what is there, unless it is a directory; a symbolic
// link that the whole path is is not followed but replaced. Only the lowest twelve bits of
// a mode count.

// Mkdir makes a directory. One that is there stays as it is.
func (t *Tree) Mkdir(path string, mode uint32) error {
	if n, err := t.find(path, true); err == nil && n.isDir() {
		return nil
	}
	n := newDirectory(t.top())
	n.mode = ext4.TypeDirectory | mode&0o7777
	return t.put(path, n)
}

// WriteFile makes a regular file of some bytes, which the tree keeps.
func (t *Tree) WriteFile(path string, mode uint32, data []byte) error {
	return t.WriteFileFrom(path, mode, int64(len(data)), func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
}

// WriteFileFrom makes a regular file of a size in bytes. What it holds is read when the
// tree is written, and must be at least that much then.
func (t *Tree) WriteFileFrom(path string, mode uint32, size int64, open func() (io.ReadCloser, error)) error {
	if size < 0 {
		return failed(path, fmt.Errorf("it has %d bytes: %w", size, fs.ErrInvalid))
	}
	return t.put(path, &inode{
		mode: ext4.TypeRegular | mode&0o7777, modified: time.Unix(0, 0), size: size, detail: &detail{open: open},
	})
}

// Symlink makes a symbolic link.
func (t *Tree) Symlink(target, path string) error {
	if target == "" || len(target) > ext4.MaxSymlink {
		return failed(path, fmt.Errorf("it leads to %d bytes: %w", len(target), fs.ErrInvalid))
	}
	return t.put(path, &inode{mode: ext4.TypeSymlink | 0o777, modified: time.Unix(0, 0), detail: &detail{target: target}})
}

// top is the number of what is above all layers.
func (t *Tree) top() int { return len(t.layers) + 1 }

// put puts something at a path.
func (t *Tree) put(path string, n *inode) error {
	name, err := clean(path)
	if err != nil {
		return failed(path, err)
	}
	dir, base := split(name)
	parent, err := t.findDirectory(dir, t.top())
	if err != nil {
		return failed(path, err)
	}
	old := parent.children[base].inode
	switch {
	case name == "" || old != nil && old.isDir():
		return failed(path, syscall.EISDIR)
	case old != nil && n.isDir():
		return failed(path, syscall.ENOTDIR)
	}
	if err := t.link(parent, base, n, t.top()); err != nil {
		return failed(path, err)
	}
	return nil
}

// Remove removes what is at a path, with all that is below. A symbolic link that the whole path
// is is not followed. The root is only emptied, and what is not there stays so.
func (t *Tree) Remove(path string) error {
	name, err := clean(path)
	if err != nil {
		return failed(path, err)
	}
	dir, base := split(name)
	parent, err := t.find(dir, true)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return nil
	case err != nil:
		return failed(path, err)
	case name == "":
		return t.RemoveBelow(path)
	case parent.isDir():
		t.unlink(parent, base)
	}
	return nil
}

// RemoveBelow removes all that is in a directory at a path, if there is one.
func (t *Tree) RemoveBelow(path string) error {
	names, err := t.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := t.find(path, true)
	if err != nil {
		return failed(path, err)
	}
	for _, name := range names {
		t.unlink(n, name)
	}
	return nil
}
