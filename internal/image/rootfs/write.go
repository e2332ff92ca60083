package rootfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// Ext4Options say what filesystem to write a tree to.
type Ext4Options struct {
	Mke2fs   string           // path of the program
	Size     int64            // of the filesystem, in bytes
	Label    string           // up to 16 bytes
	Progress func(done int64) // told how many bytes of the layers, as stored, were read; may be nil
}

// WriteExt4 writes the tree as an ext4 filesystem to a new, sparse file, for which there
// must be none yet. If it fails the file is removed. The layers are read again. An error
// wraps ErrTooLarge if the filesystem is too small, ErrDigest if a layer is not what it was.
func (t *Tree) WriteExt4(ctx context.Context, path string, opts Ext4Options) error {
	if int64(t.inodes) > opts.Size/ext4.BlockSize {
		return tooLarge("%d files and directories do not fit into %d bytes", t.inodes, opts.Size)
	}
	// Half of the inodes, or more, are for what is made in the filesystem later.
	err := ext4.Make(ctx, path, ext4.MakeOptions{
		Mke2fs: opts.Mke2fs, Size: opts.Size, Inodes: 2*int64(t.inodes) + ext4.ReservedInodes, Label: opts.Label,
	})
	if err != nil {
		return err
	}
	err = t.fill(ctx, path, opts)
	if errors.Is(err, ext4.ErrFull) {
		err = tooLarge("it does not fit into %d bytes: %w", opts.Size, err)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// fill fills an empty filesystem.
func (t *Tree) fill(ctx context.Context, path string, opts Ext4Options) (err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open filesystem: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	fs, err := ext4.Open(file, opts.Size)
	if err != nil {
		return err
	}
	o := t.order()
	if err := o.number(fs); err != nil {
		return err
	}
	for _, n := range o.directories {
		if err := writeDirectory(fs, n, n == t.root); err != nil {
			return err
		}
	}
	count := &counter{report: opts.Progress}
	for i, files := range o.layers {
		err := t.readContents(ctx, i+1, files, count, func(n *inode, r io.Reader) error {
			return fs.WriteFile(ctx, n.number, n.attributes(), n.size, r)
		})
		if err != nil {
			return err
		}
	}
	for _, n := range o.others {
		if err := writeOther(ctx, fs, n); err != nil {
			return err
		}
	}
	return fs.Close()
}

// order is the order in which the inodes of a tree are written.
type order struct {
	directories []*inode
	layers      [][]*inode // files, as they are in the layers
	others      []*inode
	seen        map[*inode]bool // of those that have several names
}

const lostFound = "lost+found" // every ext4 filesystem has it, as a directory

func (t *Tree) order() *order {
	o := &order{layers: make([][]*inode, len(t.layers)), seen: make(map[*inode]bool)}
	if c, found := t.root.children[lostFound]; found && !c.isDir() {
		t.unlink(t.root, lostFound)
	}
	o.add(t.root)
	for _, files := range o.layers {
		slices.SortFunc(files, func(a, b *inode) int { return cmp.Compare(a.entry, b.entry) })
	}
	return o
}

func (o *order) add(n *inode) {
	if n.isDir() {
		o.directories = append(o.directories, n)
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			o.add(n.children[name].inode)
		}
		return
	}
	if n.links > 1 {
		if o.seen[n] {
			return
		}
		o.seen[n] = true
	}
	if n.isRegular() && n.open == nil {
		o.layers[n.from-1] = append(o.layers[n.from-1], n)
	} else {
		o.others = append(o.others, n)
	}
}

// number gives all of them their inodes.
func (o *order) number(fs *ext4.Filesystem) (err error) {
	root := o.directories[0]
	root.number = ext4.Root
	if c, found := root.children[lostFound]; found {
		c.number = ext4.LostFound
	}
	for _, list := range append([][]*inode{o.directories[1:]}, append(o.layers, o.others)...) {
		for _, n := range list {
			if n.isDir() && n.parent == root && n == root.children[lostFound].inode {
				continue
			}
			if n.number, err = fs.NewInode(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *inode) attributes() ext4.Attributes {
	return ext4.Attributes{
		Mode: n.mode, UID: n.uid, GID: n.gid, Links: int(n.links), Modified: n.modified,
		Extended: n.extended, DeviceNode: n.device,
	}
}

func writeDirectory(fs *ext4.Filesystem, n *inode, isRoot bool) error {
	entries := make([]ext4.Entry, 0, len(n.children)+1)
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		c := n.children[name]
		entries = append(entries, ext4.Entry{Name: name, Inode: c.number, Mode: c.mode})
	}
	if _, found := n.children[lostFound]; isRoot && !found {
		entries = append(entries, ext4.Entry{Name: lostFound, Inode: ext4.LostFound, Mode: ext4.TypeDirectory})
	}
	return fs.WriteDirectory(n.number, n.attributes(), n.parent.number, entries)
}

// writeOther writes what has no contents in a layer.
func writeOther(ctx context.Context, fs *ext4.Filesystem, n *inode) error {
	switch n.kind() {
	case ext4.TypeSymlink:
		return fs.WriteSymlink(n.number, n.attributes(), n.target)
	case ext4.TypeRegular:
		r, err := n.open()
		if err != nil {
			return fmt.Errorf("open file for image: %w", err)
		}
		defer r.Close()
		if err := fs.WriteFile(ctx, n.number, n.attributes(), n.size, r); err != nil {
			return fmt.Errorf("write file of image: %w", err)
		}
		return nil
	}
	return fs.WriteSpecial(n.number, n.attributes())
}

// readContents reads a layer again and hands out the contents of files, in the order of
// their entries, of which use reads as much as it needs.
func (t *Tree) readContents(ctx context.Context, layer int, files []*inode, count *counter, use func(n *inode, r io.Reader) error) error {
	if len(files) == 0 {
		return nil
	}
	r, err := openLayer(ctx, &t.layers[layer-1], t.limits.Bytes, count)
	if err != nil {
		return err
	}
	defer r.close()
	for entry := 0; ; entry++ {
		h, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if len(files) == 0 || int(files[0].entry) != entry {
			continue
		}
		n := files[0]
		files = files[1:]
		if h.Size != n.size {
			return r.failed(fmt.Errorf("%w: it was changed", ErrDigest))
		}
		if err := use(n, r.contents()); err != nil {
			return r.contentsFailed(err)
		}
	}
	if len(files) > 0 {
		return r.failed(fmt.Errorf("%w: it was changed", ErrDigest))
	}
	_, err = r.finish()
	return err
}
