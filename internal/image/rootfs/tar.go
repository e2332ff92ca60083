package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// WriteTar writes the tree as a tar archive that makes the same tree again: with links, device
// nodes, owners, times to the nanosecond and extended attributes. Holes in files become zeros,
// and sockets are left out, for which archives have no type. The same tree makes the same archive,
// byte for byte. Layers are read again; errors are those of WriteExt4 then. It fails with fs.ErrInvalid
// if a name means something else in a layer.
func (t *Tree) WriteTar(ctx context.Context, w io.Writer) error {
	a := archiver{ctx: ctx, out: tar.NewWriter(w), names: make(map[*inode][]string)}
	if err := a.find(t.root, ""); err != nil {
		return err
	}
	o := t.order()
	for _, n := range o.directories {
		if n == t.root.children[lostFound].inode && len(n.children) == 0 {
			continue // every filesystem has its own
		}
		if err := a.write(n, nil); err != nil {
			return err
		}
	}
	for i, files := range o.layers {
		if err := t.readContents(ctx, i+1, files, &counter{}, a.write); err != nil {
			return err
		}
	}
	for _, n := range o.others {
		if err := a.writeOther(n); err != nil {
			return err
		}
	}
	if err := a.out.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

// archiver writes an archive.
type archiver struct {
	ctx   context.Context
	out   *tar.Writer
	names map[*inode][]string // by what they stand for, sorted
	block []byte
}

// find notes the names of all that is in a directory at a path.
func (a *archiver) find(dir *inode, at string) error {
	a.names[dir] = []string{at + "/"}
	for _, name := range slices.Sorted(maps.Keys(dir.children)) {
		path := at + "/" + name
		switch {
		case len(path) > maxPath:
			return failed(path, tooLarge("its path has more than %d bytes", maxPath))
		case strings.HasPrefix(name, whiteout):
			return failed(path, fmt.Errorf("in a layer its name means that another file is gone: %w", fs.ErrInvalid))
		}
		n := dir.children[name].inode
		if n.isDir() {
			if err := a.find(n, path); err != nil {
				return err
			}
			continue
		}
		a.names[n] = append(a.names[n], path)
	}
	return nil
}

func (a *archiver) writeOther(n *inode) error {
	switch n.kind() {
	case ext4.TypeSocket:
		return nil
	case ext4.TypeRegular:
		r, err := n.open()
		if err != nil {
			return failed(a.names[n][0], err)
		}
		defer r.Close()
		return a.write(n, r)
	}
	return a.write(n, nil)
}

// archiveType is what an archive calls a type of an inode, or 0 if it has none for it.
func archiveType(kind uint32) byte {
	switch kind {
	case ext4.TypeDirectory:
		return tar.TypeDir
	case ext4.TypeRegular:
		return tar.TypeReg
	case ext4.TypeSymlink:
		return tar.TypeSymlink
	case ext4.TypeCharacter:
		return tar.TypeChar
	case ext4.TypeBlock:
		return tar.TypeBlock
	case ext4.TypeFIFO:
		return tar.TypeFifo
	}
	return 0
}

// write writes an entry with the contents that r has, and one for each other name.
func (a *archiver) write(n *inode, r io.Reader) error {
	names := a.names[n]
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: archiveType(n.kind()), Name: relative(names[0]), Mode: int64(n.mode &^ ext4.TypeMask),
		Uid: int(n.uid), Gid: int(n.gid), Size: n.size, ModTime: n.modified, Linkname: n.target,
		Devmajor: int64(n.device.Major), Devminor: int64(n.device.Minor),
	}
	for _, e := range n.extended {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[extendedRecord+e.Name] = string(e.Value)
	}
	if err := a.out.WriteHeader(h); err != nil {
		return failed(names[0], fmt.Errorf("write archive: %w", err))
	}
	if n.isRegular() {
		if err := a.copy(r, n.size); err != nil {
			return failed(names[0], err)
		}
	}
	for _, name := range names[1:] {
		link := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeLink, Name: relative(name), Linkname: h.Name, ModTime: n.modified}
		if err := a.out.WriteHeader(link); err != nil {
			return failed(name, fmt.Errorf("write archive: %w", err))
		}
	}
	return nil
}

// relative is a path as archives have it.
func relative(path string) string {
	if path == "/" {
		return "./"
	}
	return path[1:]
}

// copy copies the contents of a file of a size. Holes are not read.
func (a *archiver) copy(r io.Reader, size int64) error {
	if a.block == nil {
		a.block = make([]byte, blockSize)
	}
	sparse, _ := r.(ext4.Sparse)
	data := int64(0) // where it begins, as far as that is known
	for at := int64(0); at < size; {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		block := a.block[:min(blockSize, size-at)]
		if sparse != nil && data <= at {
			next, err := sparse.NextData(at)
			if err != nil {
				return err
			}
			data = next
		}
		switch {
		case sparse != nil && data >= at+int64(len(block)):
			clear(block)
		case sparse != nil:
			if _, err := sparse.ReadAt(block, at); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		default:
			if _, err := io.ReadFull(r, block); err != nil {
				return fmt.Errorf("read file: %w", err)
			}
		}
		if _, err := a.out.Write(block); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		at += int64(len(block))
	}
	return nil
}
