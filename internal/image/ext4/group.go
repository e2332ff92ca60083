package ext4

import (
	"errors"
	"fmt"
)

// The descriptor of a group, by offset. The second of two is for the higher half.
const (
	groupBlockBitmap, groupBlockBitmapHigh = 0x00, 0x20
	groupInodeBitmap, groupInodeBitmapHigh = 0x04, 0x24
	groupTable, groupTableHigh             = 0x08, 0x28
	groupFreeBlocks, groupFreeBlocksHigh   = 0x0c, 0x2c
	groupFreeInodes, groupFreeInodesHigh   = 0x0e, 0x2e
	groupDirectories, groupDirectoriesHigh = 0x10, 0x30
)

// group is a group of blocks and inodes. A bit that is set in a bitmap is a block or an
// inode that is taken.
type group struct {
	raw           []byte
	blockBitmapAt uint64
	inodeBitmapAt uint64
	tableAt       uint64
	freeBlocks    uint32
	freeInodes    uint32
	directories   uint32
	blockBitmap   []byte
	inodeBitmap   []byte
	changed       bool
}

func decodeGroup(raw []byte) group {
	number := func(low, high int) uint64 { return uint64(le.Uint32(raw[high:]))<<32 | uint64(le.Uint32(raw[low:])) }
	count := func(low, high int) uint32 { return uint32(le.Uint16(raw[high:]))<<16 | uint32(le.Uint16(raw[low:])) }
	return group{
		raw:           raw,
		blockBitmapAt: number(groupBlockBitmap, groupBlockBitmapHigh),
		inodeBitmapAt: number(groupInodeBitmap, groupInodeBitmapHigh),
		tableAt:       number(groupTable, groupTableHigh),
		freeBlocks:    count(groupFreeBlocks, groupFreeBlocksHigh),
		freeInodes:    count(groupFreeInodes, groupFreeInodesHigh),
		directories:   count(groupDirectories, groupDirectoriesHigh),
	}
}

func (g *group) encode() []byte {
	count := func(low, high int, n uint32) {
		le.PutUint16(g.raw[low:], uint16(n))
		le.PutUint16(g.raw[high:], uint16(n>>16))
	}
	count(groupFreeBlocks, groupFreeBlocksHigh, g.freeBlocks)
	count(groupFreeInodes, groupFreeInodesHigh, g.freeInodes)
	count(groupDirectories, groupDirectoriesHigh, g.directories)
	return g.raw
}

func (g *group) readBitmaps(device Device) error {
	g.blockBitmap, g.inodeBitmap = make([]byte, BlockSize), make([]byte, BlockSize)
	_, blocksErr := device.ReadAt(g.blockBitmap, int64(g.blockBitmapAt)*BlockSize)
	_, inodesErr := device.ReadAt(g.inodeBitmap, int64(g.inodeBitmapAt)*BlockSize)
	return errors.Join(blocksErr, inodesErr)
}

func (g *group) writeBitmaps(device Device) error {
	_, blocksErr := device.WriteAt(g.blockBitmap, int64(g.blockBitmapAt)*BlockSize)
	_, inodesErr := device.WriteAt(g.inodeBitmap, int64(g.inodeBitmapAt)*BlockSize)
	return errors.Join(blocksErr, inodesErr)
}

func isSet(bitmap []byte, i uint64) bool { return bitmap[i/8]&(1<<(i%8)) != 0 }

// allocate takes up to so many blocks that follow one another, and at least one.
func (fs *Filesystem) allocate(want uint64) (first, count uint64, err error) {
	for size := fs.super.groupBlocks; fs.block < fs.super.blocks; {
		begin := fs.block - fs.block%size
		g, bit, end := &fs.groups[fs.block/size], fs.block-begin, min(size, fs.super.blocks-begin)
		for bit < end && isSet(g.blockBitmap, bit) {
			bit++
		}
		first = begin + bit
		for bit < end && count < want && !isSet(g.blockBitmap, bit) {
			g.blockBitmap[bit/8] |= 1 << (bit % 8)
			count++
			bit++
		}
		fs.block = begin + bit
		if count == 0 {
			continue
		}
		if uint64(g.freeBlocks) < count {
			return 0, 0, fmt.Errorf("%w: too few free blocks in a group", ErrFormat)
		}
		g.freeBlocks -= uint32(count)
		g.changed = true
		return first, count, nil
	}
	return 0, 0, fmt.Errorf("%w: no blocks are left", ErrFull)
}

// release gives blocks back.
func (fs *Filesystem) release(first, count uint64) {
	for at := first; at < first+count; at++ {
		g, bit := &fs.groups[at/fs.super.groupBlocks], at%fs.super.groupBlocks
		if isSet(g.blockBitmap, bit) {
			g.blockBitmap[bit/8] &^= 1 << (bit % 8)
			g.freeBlocks++
			g.changed = true
		}
	}
	fs.block = min(fs.block, first)
}

// NewInode takes an inode, which is nothing until it is written. The numbers of inodes
// grow, and inodes are best written in their order.
func (fs *Filesystem) NewInode() (Inode, error) {
	if fs.failed != nil {
		return 0, fs.failed
	}
	for ; fs.inode < fs.super.inodes; fs.inode++ {
		g, bit := fs.groupOf(Inode(fs.inode + 1))
		if isSet(g.inodeBitmap, bit) {
			continue
		}
		if g.freeInodes == 0 {
			return 0, fs.fail(fmt.Errorf("%w: too few free inodes in a group", ErrFormat))
		}
		g.inodeBitmap[bit/8] |= 1 << (bit % 8)
		g.freeInodes--
		g.changed = true
		fs.inode++
		return Inode(fs.inode), nil
	}
	return 0, fs.fail(fmt.Errorf("%w: no inodes are left", ErrFull))
}

// groupOf returns an inode's group and its place in it.
func (fs *Filesystem) groupOf(i Inode) (g *group, index uint64) {
	n := uint64(i) - 1
	return &fs.groups[n/uint64(fs.super.groupInodes)], n % uint64(fs.super.groupInodes)
}
