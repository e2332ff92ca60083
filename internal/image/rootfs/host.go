package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/image/ext4"
	"github.com/smolvm/smolvm/internal/sparse"
)

// FromDir returns a tree of what is in a directory of the host: links, device nodes, owners,
// times and extended attributes are kept, sockets left out. If this process is not root's,
// what belongs to its user or group belongs to root in the tree. Contents are read when
// the tree is written; a file must have its size then.
func FromDir(ctx context.Context, dir string, limits Limits) (*Tree, error) {
	t := newTree(limits)
	if err := t.AddDir(ctx, dir, "/"); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	root, err := t.fromHost(dir, ".", info)
	if err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	t.root.describe(root)
	return t, nil
}

// AddDir puts what is in a directory of the host into the directory at a path of the tree,
// as FromDir does. Directories that are there are merged and stay what they are; all else
// is replaced.
func (t *Tree) AddDir(ctx context.Context, hostDir, at string) error {
	name, err := clean(at)
	if err != nil {
		return failed(at, err)
	}
	parent, err := t.findDirectory(name, t.top())
	if err != nil {
		return failed(at, err)
	}
	// A symbolic link leads to the directory that is meant, but none in it leads out of it.
	resolved, err := filepath.EvalSymlinks(hostDir)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	a := adder{ctx: ctx, tree: t, dir: resolved, links: make(map[hostID]*inode)}
	if err := a.add(parent, "."); err != nil {
		return fmt.Errorf("read directory %s: %w", hostDir, err)
	}
	return nil
}

// adder adds a directory of the host.
type adder struct {
	ctx   context.Context
	tree  *Tree
	dir   string
	links map[hostID]*inode // what has several names
}

// hostID is what tells a file of the host from all others.
type hostID struct{ device, inode uint64 }

// add adds what is in a directory, at a path from a.dir.
func (a *adder) add(parent *inode, from string) error {
	entries, err := os.ReadDir(filepath.Join(a.dir, from))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		name := path.Join(from, e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSocket != 0 {
			continue
		}
		n, err := a.inode(parent, e.Name(), name, info)
		if err != nil {
			return failed(name, err)
		}
		if n.isDir() {
			if err := a.add(n, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// inode puts a file of the host at a name, and returns it.
func (a *adder) inode(parent *inode, name, from string, info fs.FileInfo) (*inode, error) {
	stat, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		return nil, errors.ErrUnsupported
	}
	old := parent.children[name].inode
	if info.IsDir() && old != nil && old.isDir() {
		return old, nil
	}
	id := hostID{stat.Dev, stat.Ino}
	n := a.links[id]
	if n == nil {
		var err error
		if n, err = a.tree.fromHost(a.dir, from, info); err != nil {
			return nil, err
		}
		if stat.Nlink > 1 && !info.IsDir() {
			a.links[id] = n
		}
	}
	return n, a.tree.link(parent, name, n, a.tree.top())
}

// fromHost returns what a file in a directory of the host is, without a name.
func (t *Tree) fromHost(dir, from string, info fs.FileInfo) (*inode, error) {
	file := filepath.Join(dir, from)
	var d detail
	stat, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		return nil, errors.ErrUnsupported
	}
	n := &inode{
		mode: stat.Mode, uid: stat.Uid, gid: stat.Gid,
		modified: time.Unix(stat.Mtim.Unix()),
	}
	if uid := os.Geteuid(); uid != 0 {
		if n.uid == uint32(uid) {
			n.uid = 0
		}
		if n.gid == uint32(os.Getegid()) {
			n.gid = 0
		}
	}
	switch n.kind() {
	case ext4.TypeDirectory:
		n.directory = &directory{layer: t.top()}
	case ext4.TypeRegular:
		n.size = stat.Size
		d.open = func() (io.ReadCloser, error) { return openHost(dir, from, info) }
	case ext4.TypeSymlink:
		target, err := os.Readlink(file)
		if err != nil {
			return nil, err
		}
		d.target = target
	case ext4.TypeCharacter, ext4.TypeBlock:
		d.device = ext4.DeviceNode{Major: unix.Major(stat.Rdev), Minor: unix.Minor(stat.Rdev)}
	}
	var err error
	d.extended, err = hostExtended(file)
	n.detail = d.kept()
	return n, err
}

// hostExtended returns the extended attributes of a file of the host.
func hostExtended(file string) ([]ext4.Extended, error) {
	names, err := readExtended(func(b []byte) (int, error) { return unix.Llistxattr(file, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var list []ext4.Extended
	for name := range strings.SplitSeq(string(names), "\x00") {
		if !ext4.KnowsExtended(name) {
			continue
		}
		value, err := readExtended(func(b []byte) (int, error) { return unix.Lgetxattr(file, name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue // it is gone, or not for us
		} else if err != nil {
			return nil, fmt.Errorf("read extended attribute %q: %w", name, err)
		}
		list = append(list, ext4.Extended{Name: name, Value: value})
	}
	return list, ext4.CheckExtended(list)
}

// readExtended calls a system call until the buffer is large enough.
func readExtended(call func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := call(nil)
		if err != nil || size == 0 {
			return nil, err
		}
		b := make([]byte, size)
		n, err := call(b)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		return b[:max(n, 0)], err
	}
}

// openHost opens a regular file of the host that was seen before. It must still be the same.
func openHost(dir, from string, info fs.FileInfo) (io.ReadCloser, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := root.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	now, err := file.Stat()
	if err == nil && (!os.SameFile(now, info) || now.Size() != info.Size()) {
		err = fmt.Errorf("%s was changed meanwhile", file.Name())
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return hostFile{file}, nil
}

// hostFile is a file of the host that knows its holes.
type hostFile struct{ *os.File }

// NextData returns where data begins, from an offset on.
func (f hostFile) NextData(offset int64) (int64, error) {
	at, err := sparse.NextData(f.File, offset)
	if errors.Is(err, unix.EINVAL) { // it may all be data
		return offset, nil
	}
	return at, err
}
