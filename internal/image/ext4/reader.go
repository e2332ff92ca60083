package ext4

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

var (
	// ErrDamaged is wrapped by errors of a Reader: what it reads is no filesystem, or malformed.
	ErrDamaged = errors.New("damaged filesystem")
	// ErrUnclean is wrapped by errors of NewReader: the filesystem was not unmounted, and needs
	// e2fsck first.
	ErrUnclean = errors.New("filesystem was not unmounted")
	// ErrUnsupported is wrapped by errors of a Reader about what a filesystem may have, but not here.
	ErrUnsupported = errors.New("filesystem has something that is not understood")
)

// The features of foreign filesystems that matter to who only reads.
const (
	featureCompression = 0x1
	featureRecover     = 0x4
	featureJournal     = 0x8
	featureMetaGroups  = 0x10
	feature64Bit       = 0x80
	featureLargeDir    = 0x4000

	// knownFeatures are filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode,
	// csum_seed, largedir, inline_data and casefold.
	knownFeatures = 0x2 | featureRecover | featureMetaGroups | 0x40 | feature64Bit | 0x100 | 0x200 | 0x400 | 0x2000 | featureLargeDir | 0x8000 | 0x20000

	featureSparseSuper  = 0x1   // of those that forbid writing
	featureSparseSuper2 = 0x200 // of those that forbid nothing
)

const (
	stateClean  = 0x1
	stateErrors = 0x2

	minLogBlockSize = 10
	maxLogBlockSize = 16
	oldInodeSize    = 128
	maxInodeSize    = 4096
	shortDescriptor = 32

	descriptorTableLow  = 0x08
	descriptorTableHigh = 0x28
)

// Reader reads an ext4, ext3 or ext2 filesystem that anybody may have written: nothing in it is
// believed, and what reading costs is bounded by its size. Nothing is written. A Reader is not
// safe for concurrent use; the Files that it opened are, each by one goroutine.
type Reader struct {
	device      io.ReaderAt
	raw         []byte // the superblock
	features    uint32
	blockSize   uint64
	blocks      uint64
	firstBlock  uint64 // of the first group
	groupBlocks uint64
	groupInodes uint32
	inodes      uint32
	firstInode  Inode // that is not reserved
	inodeSize   uint64
	descriptor  uint64 // the size of a group's descriptor
	// left is how many more blocks directories may have. In a sound filesystem each block is
	// read once.
	left uint64
}

// NewReader returns a reader of the filesystem at the beginning of a device of a size in bytes. Its
// errors wrap ErrDamaged, ErrUnclean or ErrUnsupported if the filesystem is to blame.
func NewReader(device io.ReaderAt, size int64) (*Reader, error) {
	raw := make([]byte, superSize)
	if _, err := device.ReadAt(raw, superAt); errors.Is(err, io.EOF) {
		return nil, damaged("it has only %d bytes", size)
	} else if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	r := &Reader{
		device: device, raw: raw,
		features:    le.Uint32(raw[superIncompatible:]),
		blocks:      uint64(le.Uint32(raw[superBlocksLow:])),
		firstBlock:  uint64(le.Uint32(raw[superFirstBlock:])),
		groupBlocks: uint64(le.Uint32(raw[superGroupBlocks:])),
		groupInodes: le.Uint32(raw[superGroupInodes:]),
		inodes:      le.Uint32(raw[superInodes:]),
		firstInode:  LostFound,
		inodeSize:   oldInodeSize,
		descriptor:  shortDescriptor,
	}
	if le.Uint16(raw[superMagic:]) != magic {
		return nil, damaged("there is no ext4, ext3 or ext2 filesystem")
	}
	if err := r.checkFeatures(); err != nil {
		return nil, err
	}
	logBlockSize := le.Uint32(raw[superLogBlockSize:])
	if logBlockSize > maxLogBlockSize-minLogBlockSize {
		return nil, damaged("its blocks have 2^%d KiB", logBlockSize)
	}
	r.blockSize = 1 << (minLogBlockSize + logBlockSize)
	if le.Uint32(raw[superRevision:]) >= supportRevision {
		r.firstInode = Inode(le.Uint32(raw[superFirstInode:]))
		r.inodeSize = uint64(le.Uint16(raw[superInodeSize:]))
	}
	if r.features&feature64Bit != 0 {
		r.blocks |= uint64(le.Uint32(raw[superBlocksHigh:])) << 32
		r.descriptor = uint64(le.Uint16(raw[superDescriptorSize:]))
	}
	if err := r.checkShape(size); err != nil {
		return nil, err
	}
	r.left = r.blocks
	return r, nil
}

func (r *Reader) checkFeatures() error {
	switch unknown := r.features &^ knownFeatures; {
	case unknown&featureJournal != 0:
		return fmt.Errorf("%w: it is the journal of another filesystem", ErrUnsupported)
	case unknown&featureCompression != 0:
		return fmt.Errorf("%w: it is compressed", ErrUnsupported)
	case unknown != 0:
		return fmt.Errorf("%w: its features are %#x, of which %#x are not known", ErrUnsupported, r.features, unknown)
	}
	state := le.Uint16(r.raw[superState:])
	if r.features&featureRecover != 0 || state&stateClean == 0 || state&stateErrors != 0 {
		return ErrUnclean
	}
	return nil
}

// checkShape tells whether the sizes go together.
func (r *Reader) checkShape(size int64) error {
	powerOfTwo := func(n uint64) bool { return bits.OnesCount64(n) == 1 }
	switch {
	case size < 0 || r.blocks > uint64(size)/r.blockSize || r.firstBlock >= r.blocks || r.firstBlock > 1:
		return damaged("it says that it has %d blocks of %d bytes, in %d bytes", r.blocks, r.blockSize, size)
	case !powerOfTwo(r.inodeSize) || r.inodeSize < oldInodeSize || r.inodeSize > min(maxInodeSize, r.blockSize):
		return damaged("its inodes have %d bytes", r.inodeSize)
	case !powerOfTwo(r.descriptor) || r.descriptor < shortDescriptor || r.descriptor > r.blockSize,
		r.features&feature64Bit != 0 && r.descriptor < descriptorSize:
		return damaged("its descriptors have %d bytes", r.descriptor)
	case r.groupBlocks == 0 || r.groupInodes == 0 || uint64(r.groupInodes) > 8*r.blockSize:
		return damaged("its groups have %d blocks and %d inodes", r.groupBlocks, r.groupInodes)
	case uint64(r.inodes) > r.groups()*uint64(r.groupInodes) || r.inodes < uint32(Root):
		return damaged("it says that it has %d inodes, in %d groups of %d", r.inodes, r.groups(), r.groupInodes)
	}
	return nil
}

func (r *Reader) groups() uint64 {
	return (r.blocks - r.firstBlock + r.groupBlocks - 1) / r.groupBlocks
}

// readInode reads an inode as it is kept.
func (r *Reader) readInode(i Inode) ([]byte, error) {
	if i != Root && i < r.firstInode || i == 0 || uint32(i) > r.inodes {
		return nil, damaged("there is no inode %d", i)
	}
	group, index := uint64(uint32(i-1)/r.groupInodes), uint64(uint32(i-1)%r.groupInodes)
	descriptor := make([]byte, r.descriptor)
	if err := r.readAt(descriptor, r.descriptorAt(group)); err != nil {
		return nil, err
	}
	table := uint64(le.Uint32(descriptor[descriptorTableLow:]))
	if r.descriptor >= descriptorSize {
		table |= uint64(le.Uint32(descriptor[descriptorTableHigh:])) << 32
	}
	blocks := (uint64(r.groupInodes)*r.inodeSize + r.blockSize - 1) / r.blockSize
	if table <= r.firstBlock || table >= r.blocks || r.blocks-table < blocks {
		return nil, damaged("the inodes of group %d are in block %d", group, table)
	}
	raw := make([]byte, r.inodeSize)
	return raw, r.readAt(raw, table*r.blockSize+index*r.inodeSize)
}

// descriptorAt returns where the descriptor of a group is.
func (r *Reader) descriptorAt(group uint64) uint64 {
	inBlock := r.blockSize / r.descriptor
	block, index := group/inBlock, group%inBlock
	at := superAt/r.blockSize + 1 + block
	if r.features&featureMetaGroups != 0 && block >= uint64(le.Uint32(r.raw[superFirstMetaGroup:])) {
		first := block * inBlock // the first of the groups that the block is about has it
		at = r.firstBlock + first*r.groupBlocks
		switch {
		case first == 0:
			at = superAt/r.blockSize + 1
		case r.hasSuper(first):
			at++
		}
	}
	return at*r.blockSize + index*r.descriptor
}

// hasSuper tells whether a group but the first begins with a copy of the superblock.
func (r *Reader) hasSuper(group uint64) bool {
	switch {
	case le.Uint32(r.raw[superCompatible:])&featureSparseSuper2 != 0:
		return slices.Contains([]uint64{uint64(le.Uint32(r.raw[superBackups:])), uint64(le.Uint32(r.raw[superBackups+4:]))}, group)
	case le.Uint32(r.raw[superReadOnly:])&featureSparseSuper == 0 || group == 1:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}

// readBlock reads a block, of which there must be one.
func (r *Reader) readBlock(p []byte, block uint64) error {
	if block <= r.firstBlock || block >= r.blocks {
		return damaged("there is no block %d for data", block)
	}
	return r.readAt(p, block*r.blockSize)
}

func (r *Reader) readAt(p []byte, at uint64) error {
	if end := r.blocks * r.blockSize; at > end || uint64(len(p)) > end-at {
		return damaged("it has nothing at %d", at)
	}
	if _, err := r.device.ReadAt(p, int64(at)); err != nil {
		return fmt.Errorf("read filesystem: %w", err)
	}
	return nil
}

// damaged is an ErrDamaged that says why.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// IsThere tells whether a filesystem that a Reader may know begins at an offset of a device.
func IsThere(device io.ReaderAt, offset int64) bool {
	var number [2]byte
	_, err := device.ReadAt(number[:], offset+superAt+superMagic)
	return err == nil && le.Uint16(number[:]) == magic
}
