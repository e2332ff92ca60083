package ext4

import (
	"fmt"
	"time"
)

// An inode, by offset.
const (
	inodeMode          = 0x00
	inodeUIDLow        = 0x02
	inodeSizeLow       = 0x04
	inodeAccessed      = 0x08
	inodeChanged       = 0x0c
	inodeModified      = 0x10
	inodeGIDLow        = 0x18
	inodeLinks         = 0x1a
	inodeBlocksLow     = 0x1c
	inodeFlags         = 0x20
	inodeData          = 0x28
	inodeExtendedLow   = 0x68
	inodeSizeHigh      = 0x6c
	inodeBlocksHigh    = 0x74
	inodeExtendedHigh  = 0x76
	inodeUIDHigh       = 0x78
	inodeGIDHigh       = 0x7a
	inodeExtraSize     = 0x80
	inodeChangedExtra  = 0x84
	inodeModifiedExtra = 0x88
	inodeAccessedExtra = 0x8c
	inodeCreated       = 0x90
	inodeCreatedExtra  = 0x94
	inodeExtended      = 0xa0 // attributes, behind all that this package knows

	extraSize = inodeExtended - inodeExtraSize
	dataSize  = 60 // bytes at inodeData
	sector    = 512
)

// The flags of an inode.
const (
	flagIndex   = 0x1000
	flagExtents = 0x80000
)

// body is what an inode has besides its attributes.
type body struct {
	data   []byte // up to dataSize
	size   int64
	blocks uint64 // all that belong to it
	flags  uint32
}

// writeInode writes an inode that was taken.
func (fs *Filesystem) writeInode(i Inode, a *Attributes, b body) error {
	raw, err := fs.table.inode(i)
	if err != nil {
		return err
	}
	clear(raw)
	le.PutUint16(raw[inodeMode:], uint16(a.Mode))
	le.PutUint16(raw[inodeUIDLow:], uint16(a.UID))
	le.PutUint16(raw[inodeUIDHigh:], uint16(a.UID>>16))
	le.PutUint16(raw[inodeGIDLow:], uint16(a.GID))
	le.PutUint16(raw[inodeGIDHigh:], uint16(a.GID>>16))
	le.PutUint16(raw[inodeLinks:], uint16(a.Links))
	le.PutUint32(raw[inodeSizeLow:], uint32(b.size))
	le.PutUint32(raw[inodeSizeHigh:], uint32(b.size>>32))
	le.PutUint32(raw[inodeFlags:], b.flags)
	le.PutUint16(raw[inodeExtraSize:], extraSize)
	seconds, extra := encodeTime(a.Modified)
	for _, at := range []int{inodeAccessed, inodeChanged, inodeModified, inodeCreated} {
		le.PutUint32(raw[at:], seconds)
	}
	for _, at := range []int{inodeAccessedExtra, inodeChangedExtra, inodeModifiedExtra, inodeCreatedExtra} {
		le.PutUint32(raw[at:], extra)
	}
	copy(raw[inodeData:inodeData+dataSize], b.data)
	block, err := fs.writeExtended(raw[inodeExtended:], a.Extended)
	if err != nil {
		return err
	}
	if block != 0 {
		b.blocks++
		le.PutUint32(raw[inodeExtendedLow:], uint32(block))
		le.PutUint16(raw[inodeExtendedHigh:], uint16(block>>32))
	}
	sectors := b.blocks * (BlockSize / sector)
	le.PutUint32(raw[inodeBlocksLow:], uint32(sectors))
	le.PutUint16(raw[inodeBlocksHigh:], uint16(sectors>>32))
	return nil
}

// The times that 34 bits of seconds from 1901 on can say.
const (
	earliest = -1 << 31
	latest   = 1<<34 - 1<<31 - 1
)

// encodeTime returns the seconds of a time as 32 bits, and its nanoseconds with two bits
// more of the seconds.
func encodeTime(t time.Time) (seconds, extra uint32) {
	s, ns := t.Unix(), uint32(t.Nanosecond())
	if s < earliest {
		s, ns = earliest, 0
	} else if s > latest {
		s, ns = latest, 0
	}
	epoch := uint32((s-int64(int32(s)))>>32) & 3
	return uint32(s), ns<<2 | epoch
}

// WriteSymlink writes a symbolic link to a target of 1 to MaxSymlink bytes.
func (fs *Filesystem) WriteSymlink(i Inode, a Attributes, target string) error {
	if fs.failed != nil {
		return fs.failed
	}
	return fs.fail(fs.writeSymlink(i, &a, target))
}

func (fs *Filesystem) writeSymlink(i Inode, a *Attributes, target string) error {
	b := body{data: []byte(target), size: int64(len(target))}
	switch {
	case len(target) == 0 || len(target) > MaxSymlink:
		return fmt.Errorf("write symbolic link: it leads to %d bytes", len(target))
	case len(target) >= dataSize:
		var e extents
		if err := fs.append(&e, 0, append([]byte(target), make([]byte, BlockSize-len(target))...)); err != nil {
			return err
		}
		var err error
		if b.data, _, err = fs.writeExtents(&e); err != nil {
			return err
		}
		b.flags, b.blocks = flagExtents, 1
	}
	return fs.writeInode(i, a, b)
}

// WriteSpecial writes a device node, a pipe or a socket.
func (fs *Filesystem) WriteSpecial(i Inode, a Attributes) error {
	if fs.failed != nil {
		return fs.failed
	}
	b := body{}
	if kind := a.Mode & TypeMask; kind == TypeCharacter || kind == TypeBlock {
		b.data = a.DeviceNode.encode()
	}
	return fs.fail(fs.writeInode(i, &a, b))
}

// encode returns a small number in the first of two words and a large one in the second,
// as the kernel does.
func (d DeviceNode) encode() []byte {
	if d.Major < 1<<8 && d.Minor < 1<<8 {
		return le.AppendUint32(nil, d.Major<<8|d.Minor)
	}
	return le.AppendUint32(make([]byte, 4), d.Minor&0xff|d.Major<<8|d.Minor&^0xff<<12)
}

// tableWindow is the part of the inode table that is being written.
type tableWindow struct {
	fs    *Filesystem
	at    int64 // of data on the device; 0: nowhere yet
	data  []byte
	dirty bool
}

// tableBlocks is how many blocks of the table a window has, at most.
const tableBlocks = 16

// inode returns the place of an inode, which it is written to before the next call.
func (w *tableWindow) inode(i Inode) ([]byte, error) {
	g, index := w.fs.groupOf(i)
	block := index / inodesInBlock
	first := block - block%tableBlocks
	at := int64(g.tableAt+first) * BlockSize
	if at != w.at {
		if err := w.flush(); err != nil {
			return nil, err
		}
		n := min(tableBlocks, uint64(w.fs.super.groupInodes/inodesInBlock)-first)
		w.at, w.data = at, make([]byte, n*BlockSize)
		if _, err := w.fs.out.device.ReadAt(w.data, at); err != nil {
			return nil, fmt.Errorf("read inodes: %w", err)
		}
	}
	w.dirty = true
	return w.data[(index-first*inodesInBlock)*InodeSize:][:InodeSize], nil
}

func (w *tableWindow) flush() error {
	if !w.dirty {
		return nil
	}
	w.dirty = false
	return w.fs.out.writeAt(w.data, w.at)
}
