package rootfs

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// FromExt4 returns a tree of what is in an ext4, ext3 or ext2 filesystem at the beginning of a
// device of a size in bytes, with all that it says of its files. Contents are read when the tree
// is written, or a file is read from it: until then the device must be open, and stay as it is.
//
// The filesystem is from anyone. Errors wrap those of an ext4.Reader if it is to blame, and
// ErrTooLarge.
func FromExt4(ctx context.Context, device io.ReaderAt, size int64, limits Limits) (*Tree, error) {
	reader, err := ext4.NewReader(device, size)
	if err != nil {
		return nil, err
	}
	t := newTree(limits)
	d := diskReader{ctx: ctx, tree: t, reader: reader, links: make(map[ext4.Inode]*inode)}
	root, node, err := d.inode(ext4.Root)
	if err != nil {
		return nil, fmt.Errorf("read root directory: %w", err)
	}
	if !root.isDir() {
		return nil, fmt.Errorf("read root directory: %w: it is none", ext4.ErrDamaged)
	}
	t.root.describe(root)
	d.links[ext4.Root] = t.root
	return t, d.fill(t.root, node, "")
}

// diskReader puts what is in a filesystem into a tree.
type diskReader struct {
	ctx    context.Context
	tree   *Tree
	reader *ext4.Reader
	links  map[ext4.Inode]*inode // directories, and what has several names
}

// fill reads a directory at a path, and all that is below.
func (d *diskReader) fill(dir *inode, node *ext4.Node, at string) error {
	type below struct {
		name string
		dir  *inode
		node *ext4.Node
	}
	var directories []below
	err := d.reader.Names(d.ctx, node, func(name string, i ext4.Inode) error {
		if _, twice := dir.children[name]; twice {
			return failed(at+"/"+name, fmt.Errorf("%w: it is there twice", ext4.ErrDamaged))
		}
		n, node, err := d.child(i)
		if err != nil {
			return failed(at+"/"+name, err)
		}
		if err := d.tree.link(dir, name, n, d.tree.top()); err != nil {
			return failed(at+"/"+name, err)
		}
		if n.isDir() {
			directories = append(directories, below{name, n, node})
		}
		return nil
	})
	for _, b := range directories {
		if err == nil {
			err = d.fill(b.dir, b.node, at+"/"+b.name)
		}
	}
	return err
}

// child returns what a name stands for. A directory may have only one.
func (d *diskReader) child(i ext4.Inode) (*inode, *ext4.Node, error) {
	if known := d.links[i]; known != nil {
		if known.isDir() {
			return nil, nil, fmt.Errorf("%w: a directory has two names", ext4.ErrDamaged)
		}
		return known, nil, nil
	}
	n, node, err := d.inode(i)
	if err == nil && (n.isDir() || node.Links > 1) {
		d.links[i] = n
	}
	return n, node, err
}

// inode returns what an inode of the filesystem is, without a name.
func (d *diskReader) inode(i ext4.Inode) (*inode, *ext4.Node, error) {
	node, err := d.reader.Node(i)
	if err != nil {
		return nil, nil, err
	}
	n := &inode{mode: node.Mode, uid: node.UID, gid: node.GID, modified: node.Modified}
	more := detail{extended: node.Extended, device: node.DeviceNode}
	switch n.kind() {
	case ext4.TypeDirectory:
		n.directory = &directory{layer: d.tree.top()}
	case ext4.TypeRegular:
		if n.size = node.Size; n.size > math.MaxInt64/2 {
			return nil, nil, tooLarge("it has %d bytes", n.size)
		}
		reader := d.reader
		more.open = func() (io.ReadCloser, error) {
			node, err := reader.Node(i)
			if err != nil {
				return nil, err
			}
			return reader.Open(node)
		}
	case ext4.TypeSymlink:
		if more.target, err = d.reader.Target(node); err != nil {
			return nil, nil, err
		}
	}
	if err := ext4.CheckExtended(more.extended); err != nil {
		return nil, nil, err
	}
	n.detail = more.kept()
	return n, node, nil
}
