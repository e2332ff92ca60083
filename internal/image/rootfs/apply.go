package rootfs

import (
	"archive/tar"
	"cmp"
	"errors"
	"io/fs"
	"math"
	"slices"
	"strings"
	"syscall"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// Names that begin so are not files but say what is gone from the layers below.
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutAUFS   = ".wh..wh." // what a filesystem of old kept for itself
)

// extendedRecord is what records of extended attributes begin with.
const extendedRecord = "SCHILY.xattr."

// apply applies an entry of a layer as if the entries before it had been applied. What a
// layer says is gone is gone from the layers below only, wherever in the layer it says so.
// It returns the file that the entry's contents are of, if any.
func (t *Tree) apply(h *tar.Header, layer, entry int) (*inode, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return nil, err
	}
	dir, base := split(name)
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whiteoutAUFS) {
			return nil, nil
		} else if strings.HasPrefix(part, whiteout) {
			return nil, malformed("a directory has a name that is reserved")
		}
	}
	if strings.HasPrefix(base, whiteout) {
		return nil, t.applyWhiteout(dir, base, layer)
	}
	if h.Typeflag == tar.TypeLink {
		return nil, t.applyLink(h, name, layer)
	}
	n, err := describe(h, layer, entry)
	if err != nil {
		return nil, err
	}
	if name == "" {
		if !n.isDir() {
			return nil, malformed("the root is no directory")
		}
		t.root.describe(n)
		return nil, nil
	}
	parent, err := t.parent(dir, layer)
	if err != nil {
		return nil, err
	}
	if old := parent.children[base].inode; old != nil && old.isDir() && n.isDir() {
		old.describe(n)
		return nil, nil
	}
	if err := t.link(parent, base, n, layer); err != nil {
		return nil, err
	}
	if n.isRegular() {
		return n, nil
	}
	return nil, nil
}

// parent returns the directory that an entry goes to.
func (t *Tree) parent(dir string, layer int) (*inode, error) {
	n, err := t.findDirectory(dir, layer)
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, malformed("its directory: %w", err)
	}
	return n, err
}

func (t *Tree) applyWhiteout(dir, base string, layer int) error {
	hidden := strings.TrimPrefix(base, whiteout)
	if base != whiteoutOpaque && (hidden == "" || hidden == "." || hidden == "..") {
		return malformed("it says that nothing is gone")
	}
	parent, err := t.find(dir, true)
	switch {
	case err != nil || !parent.isDir(): // there is nothing to hide
	case base == whiteoutOpaque:
		t.clear(parent, layer)
	case strings.HasPrefix(base, whiteoutAUFS):
	default:
		t.hide(parent, hidden, layer)
	}
	return nil
}

// applyLink gives what is there another name. A symbolic link can have several, too.
func (t *Tree) applyLink(h *tar.Header, name string, layer int) error {
	if name == "" {
		return malformed("the root is no directory")
	}
	target, err := clean(h.Linkname)
	if err != nil {
		return malformed("what it links to: %w", err)
	}
	n, err := t.find(target, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return malformed("it links to "+shown+", which is not there", h.Linkname)
	case err != nil:
		return malformed("what it links to: %w", err)
	case n.isDir():
		return malformed("it links to a directory")
	}
	dir, base := split(name)
	parent, err := t.parent(dir, layer)
	if err != nil {
		return err
	}
	if parent.children[base].inode == n {
		parent.children[base] = child{n, layer}
		return nil
	}
	return t.link(parent, base, n, layer)
}

// describe returns what an entry describes, without a name.
func describe(h *tar.Header, layer, entry int) (*inode, error) {
	n, d := &inode{mode: uint32(h.Mode & 0o7777), modified: h.ModTime}, detail{}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse: // see hasContents
		n.mode |= ext4.TypeRegular
		n.size, n.from, n.entry = h.Size, int32(layer), int32(entry)
	case tar.TypeDir:
		n.mode |= ext4.TypeDirectory
		n.directory = &directory{layer: layer}
	case tar.TypeSymlink:
		n.mode |= ext4.TypeSymlink
		if d.target = h.Linkname; d.target == "" || len(d.target) > ext4.MaxSymlink || strings.ContainsRune(d.target, 0) {
			return nil, malformed("it leads to no path")
		}
	case tar.TypeFifo:
		n.mode |= ext4.TypeFIFO
	case tar.TypeChar, tar.TypeBlock:
		n.mode |= ext4.TypeCharacter
		if h.Typeflag == tar.TypeBlock {
			n.mode = n.mode&^ext4.TypeMask | ext4.TypeBlock
		}
		if h.Devmajor < 0 || h.Devmajor > ext4.MaxMajor || h.Devminor < 0 || h.Devminor > ext4.MaxMinor {
			return nil, malformed("there is no device %d:%d", h.Devmajor, h.Devminor)
		}
		d.device = ext4.DeviceNode{Major: uint32(h.Devmajor), Minor: uint32(h.Devminor)}
	default:
		return nil, malformed("it is of the unknown type %q", h.Typeflag)
	}
	if !isID(h.Uid) || !isID(h.Gid) {
		return nil, malformed("it belongs to %d:%d", h.Uid, h.Gid)
	}
	n.uid, n.gid = uint32(h.Uid), uint32(h.Gid)
	var err error
	d.extended, err = extended(h.PAXRecords)
	n.detail = d.kept()
	return n, err
}

// isID tells whether a number is one of a user or a group. The largest of 32 bits is none.
func isID(id int) bool { return id >= 0 && int64(id) < math.MaxUint32 }

// extended returns the extended attributes among the records of an entry. Those that no
// ext4 filesystem has are left out.
func extended(records map[string]string) ([]ext4.Extended, error) {
	var list []ext4.Extended
	for key, value := range records {
		if name, found := strings.CutPrefix(key, extendedRecord); found && ext4.KnowsExtended(name) {
			list = append(list, ext4.Extended{Name: name, Value: []byte(value)})
		}
	}
	slices.SortFunc(list, func(a, b ext4.Extended) int { return cmp.Compare(a.Name, b.Name) })
	if err := ext4.CheckExtended(list); err != nil {
		return nil, malformed("%w", err)
	}
	return list, nil
}
