package ext4

import (
	"fmt"
	"strings"
)

// Entry is a name in a directory.
type Entry struct {
	Name  string // 1 to MaxName bytes, none of them zero or a slash; not "." or ".."
	Inode Inode
	Mode  uint32 // of the inode; only its type counts
}

// The parts of a directory's entry: inode, length, length of the name, type.
const (
	entryHeader    = 8
	entryAlignment = 4
	maxDirLinks    = 65000 // a directory with more has a count of one
)

func entrySize(name int) int { return entryHeader + (name+entryAlignment-1)&^(entryAlignment-1) }

// fileTypes are the types of a mode as entries say them, shifted by 12.
var fileTypes = map[uint32]byte{
	TypeRegular: 1, TypeDirectory: 2, TypeCharacter: 3, TypeBlock: 4, TypeFIFO: 5, TypeSocket: 6, TypeSymlink: 7,
}

// WriteDirectory writes a directory with all of its entries, in any order but with no
// name twice. Root and LostFound may be written too, instead of what mke2fs made; the
// root needs an entry for LostFound. The links in the attributes do not count.
func (fs *Filesystem) WriteDirectory(i Inode, a Attributes, parent Inode, entries []Entry) error {
	if fs.failed != nil {
		return fs.failed
	}
	return fs.fail(fs.writeDirectory(i, &a, parent, entries))
}

func (fs *Filesystem) writeDirectory(i Inode, a *Attributes, parent Inode, entries []Entry) error {
	a.Links = 2
	size := 2 * entrySize(2)
	for _, e := range entries {
		if e.Name == "" || len(e.Name) > MaxName || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			return fmt.Errorf("write directory: invalid name %q", e.Name)
		}
		if e.Mode&TypeMask == TypeDirectory {
			a.Links++
		}
		size += entrySize(len(e.Name))
	}
	if a.Links > maxDirLinks {
		a.Links = 1
	}
	if i == Root || i == LostFound {
		if err := fs.releaseData(i); err != nil {
			return err
		}
	} else {
		g, _ := fs.groupOf(i)
		g.directories++
		g.changed = true
	}
	var data []byte
	flags := uint32(flagExtents)
	if size > BlockSize && fs.super.hash.version == halfMD4 {
		data = fs.super.hash.indexed(i, parent, entries)
	}
	if data != nil {
		flags |= flagIndex
	} else {
		data = linear(i, parent, entries)
	}
	var e extents
	if err := fs.append(&e, 0, data); err != nil {
		return err
	}
	root, nodes, err := fs.writeExtents(&e)
	if err != nil {
		return err
	}
	return fs.writeInode(i, a, body{data: root, size: int64(len(data)), blocks: e.blocks + nodes, flags: flags})
}

// linear returns the blocks of a directory without an index.
func linear(self, parent Inode, entries []Entry) []byte {
	var b entryBlocks
	b.add(Entry{".", self, TypeDirectory})
	b.add(Entry{"..", parent, TypeDirectory})
	for _, e := range entries {
		b.add(e)
	}
	return b.finish()
}

// entryBlocks puts entries into blocks. None crosses the end of a block.
type entryBlocks struct {
	data []byte
	last int // where the last entry is
}

// fits tells whether an entry goes into the current block.
func (b *entryBlocks) fits(e *Entry) bool {
	used := len(b.data) % BlockSize
	return used > 0 && used+entrySize(len(e.Name)) <= BlockSize
}

func (b *entryBlocks) add(e Entry) {
	if !b.fits(&e) {
		b.finish()
	}
	b.last = len(b.data)
	b.data = appendEntry(b.data, e, entrySize(len(e.Name)))
}

// finish makes the last entry reach to the end of its block.
func (b *entryBlocks) finish() []byte {
	if free := -len(b.data) & (BlockSize - 1); free > 0 {
		b.data = append(b.data, make([]byte, free)...)
		le.PutUint16(b.data[b.last+4:], uint16(len(b.data)-b.last))
	}
	return b.data
}

// appendEntry appends an entry that reaches over so many bytes.
func appendEntry(b []byte, e Entry, size int) []byte {
	b = le.AppendUint32(b, uint32(e.Inode))
	b = le.AppendUint16(b, uint16(size))
	b = append(b, byte(len(e.Name)), fileTypes[e.Mode&TypeMask])
	b = append(b, e.Name...)
	return append(b, make([]byte, size-entryHeader-len(e.Name))...)
}
