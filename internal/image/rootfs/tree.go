package rootfs

import (
	"io"
	"time"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// Tree is a root filesystem. It is not safe for concurrent use.
type Tree struct {
	root   *inode
	layers []source
	limits Limits
	bytes  int64 // in all regular files
	inodes int
	names  int
	kept   map[*inode][]byte // contents that were kept when they passed by
	keeps  int               // bytes in them
}

// newTree returns a tree with nothing but its root.
func newTree(limits Limits) *Tree {
	t := &Tree{limits: limits.withDefaults(), inodes: 1, kept: make(map[*inode][]byte)}
	t.root = newDirectory(0)
	t.root.parent = t.root
	return t
}

// Bytes returns how many bytes all regular files have together, holes included.
func (t *Tree) Bytes() int64 { return t.bytes }

// Inodes returns how many files, directories and others there are. One with several names counts once.
func (t *Tree) Inodes() int { return t.inodes }

// inode is what names stand for. There are many of them: what few of them have is elsewhere.
type inode struct {
	mode     uint32 // type and permissions, as Unix numbers them
	uid, gid uint32
	links    int32 // names; a directory has one
	number   ext4.Inode
	from     int32 // the layer that the contents of a regular file are in; 0: they are opened
	entry    int32 // the number of the entry in it, from 0 on
	modified time.Time
	size     int64 // of a regular file
	*detail
	*directory
}

// detail is what few inodes have.
type detail struct {
	extended []ext4.Extended
	target   string                        // of a symbolic link
	device   ext4.DeviceNode               // of a device node
	open     func() (io.ReadCloser, error) // the contents of a regular file
}

// noDetail is the detail of most inodes. It is never changed.
var noDetail = &detail{}

// kept returns the detail for an inode, which takes no room if there is none.
func (d detail) kept() *detail {
	if d.extended == nil && d.target == "" && d.device == (ext4.DeviceNode{}) && d.open == nil {
		return noDetail
	}
	return &d
}

// directory is what only directories have. Layers are numbered from 1 on.
type directory struct {
	children map[string]child
	parent   *inode
	depth    int
	layer    int // that says what the directory is like, or made it
	cleared  int // the last layer that hid what was in it before
}

// child is what a name in a directory stands for, and the layer that it is from.
type child struct {
	*inode
	layer int
}

func newDirectory(layer int) *inode {
	return &inode{
		mode: ext4.TypeDirectory | 0o755, modified: time.Unix(0, 0), detail: noDetail,
		directory: &directory{layer: layer},
	}
}

func (n *inode) kind() uint32    { return n.mode & ext4.TypeMask }
func (n *inode) isDir() bool     { return n.kind() == ext4.TypeDirectory }
func (n *inode) isRegular() bool { return n.kind() == ext4.TypeRegular }

// describe gives a directory that is there what another says of itself.
func (n *inode) describe(other *inode) {
	n.mode, n.uid, n.gid, n.modified, n.detail = other.mode, other.uid, other.gid, other.modified, other.detail
	n.layer = other.layer
}

// link gives an inode a name, which nothing else has from then on.
func (t *Tree) link(dir *inode, name string, n *inode, layer int) error {
	t.unlink(dir, name)
	if n.links >= ext4.MaxLinks {
		return tooLarge("it has more than %d names", ext4.MaxLinks)
	}
	if t.names >= t.limits.Entries {
		return tooLarge("there are more than %d files and directories", t.limits.Entries)
	}
	if n.links == 0 {
		// Both are not negative, and the limit is one of an int64.
		if n.size > t.limits.Bytes-t.bytes {
			return tooLarge("its files have more than %d bytes", t.limits.Bytes)
		}
		t.inodes++
		t.bytes += n.size
	}
	if n.isDir() {
		if n.depth = dir.depth + 1; n.depth > maxDepth {
			return malformed("more than %d directories are in one another", maxDepth)
		}
		n.parent = dir
	}
	if dir.children == nil {
		dir.children = make(map[string]child)
	}
	dir.children[name] = child{n, layer}
	n.links++
	t.names++
	return nil
}

// unlink takes a name away, and with it all that is below, if it is there.
func (t *Tree) unlink(dir *inode, name string) {
	c, found := dir.children[name]
	if !found {
		return
	}
	delete(dir.children, name)
	t.names--
	if c.isDir() {
		for below := range c.children {
			t.unlink(c.inode, below)
		}
	}
	if c.links--; c.links == 0 {
		t.inodes--
		t.bytes -= c.size
	}
}

// hide removes what is at a name and below and not from the layer, which only adds to it.
// A directory that the layer put something into without saying what it is like becomes as
// if there had been none.
func (t *Tree) hide(dir *inode, name string, layer int) {
	c, found := dir.children[name]
	switch {
	case !found:
	case !c.isDir():
		if c.layer != layer {
			t.unlink(dir, name)
		}
	default:
		t.clear(c.inode, layer)
		switch {
		case c.directory.layer == layer:
		case len(c.children) == 0:
			t.unlink(dir, name)
		default:
			c.describe(newDirectory(layer))
		}
	}
}

// clear removes what is in a directory and not from the layer. As the layer adds nothing
// that would have to be removed, once is enough.
func (t *Tree) clear(dir *inode, layer int) {
	if dir.cleared == layer {
		return
	}
	dir.cleared = layer
	for name := range dir.children {
		t.hide(dir, name, layer)
	}
}
