package ext4

import (
	"encoding/binary"
	"fmt"
)

var le = binary.LittleEndian

// The superblock is 1024 bytes behind the device's beginning. Its fields, by offset.
const (
	superAt   = 1024
	superSize = 1024

	superInodes         = 0x00
	superBlocksLow      = 0x04
	superFreeBlocksLow  = 0x0c
	superFreeInodes     = 0x10
	superFirstBlock     = 0x14
	superLogBlockSize   = 0x18
	superGroupBlocks    = 0x20
	superGroupInodes    = 0x28
	superMagic          = 0x38
	superState          = 0x3a
	superRevision       = 0x4c
	superFirstInode     = 0x54
	superInodeSize      = 0x58
	superCompatible     = 0x5c
	superIncompatible   = 0x60
	superReadOnly       = 0x64
	superHashSeed       = 0xec
	superHashVersion    = 0xfc
	superDescriptorSize = 0xfe
	superFirstMetaGroup = 0x104
	superBlocksHigh     = 0x150
	superFreeBlocksHigh = 0x158
	superFlags          = 0x160
	superBackups        = 0x24c // two groups
)

const (
	magic           = 0xef53
	maxGroupBlocks  = 8 * BlockSize // as many as a block has bits
	logBlockSize    = 2             // of 1024
	unsignedHash    = 0x2           // in the flags
	descriptorSize  = 64
	descriptorsAt   = BlockSize             // the block behind the superblock's
	inodesInBlock   = BlockSize / InodeSize // of the table
	maxBlocks       = 1 << 32               // 16 TiB
	needsFeatures   = 0x2 | 0x40 | 0x80 | 0x200
	knowsReadOnly   = 0x1 | needsReadOnly
	needsReadOnly   = 0x2 | 0x8 | 0x20 | 0x40
	firstFreeInode  = uint32(LostFound)
	supportRevision = 1
)

// superblock is what is needed of the superblock.
type superblock struct {
	raw         []byte
	blocks      uint64
	inodes      uint32
	groupBlocks uint64
	groupInodes uint32
	hash        hasher
}

func readSuperblock(device Device, size int64) (superblock, error) {
	raw := make([]byte, superSize)
	if _, err := device.ReadAt(raw, superAt); err != nil {
		return superblock{}, fmt.Errorf("read superblock: %w", err)
	}
	s := superblock{
		raw:         raw,
		blocks:      uint64(le.Uint32(raw[superBlocksHigh:]))<<32 | uint64(le.Uint32(raw[superBlocksLow:])),
		inodes:      le.Uint32(raw[superInodes:]),
		groupBlocks: uint64(le.Uint32(raw[superGroupBlocks:])),
		groupInodes: le.Uint32(raw[superGroupInodes:]),
	}
	s.hash.version = raw[superHashVersion]
	s.hash.unsigned = le.Uint32(raw[superFlags:])&unsignedHash != 0
	for i := range s.hash.seed {
		s.hash.seed[i] = le.Uint32(raw[superHashSeed+4*i:])
	}
	readOnly := le.Uint32(raw[superReadOnly:])
	for what, good := range map[string]bool{
		"magic number":    le.Uint16(raw[superMagic:]) == magic && le.Uint32(raw[superRevision:]) == supportRevision,
		"features":        le.Uint32(raw[superIncompatible:]) == needsFeatures && readOnly&^knowsReadOnly == 0 && readOnly&needsReadOnly == needsReadOnly,
		"block size":      le.Uint32(raw[superLogBlockSize:]) == logBlockSize && le.Uint32(raw[superFirstBlock:]) == 0,
		"inode size":      le.Uint16(raw[superInodeSize:]) == InodeSize && le.Uint32(raw[superFirstInode:]) == firstFreeInode,
		"descriptor size": le.Uint16(raw[superDescriptorSize:]) == descriptorSize,
		"blocks": s.blocks > 0 && s.blocks <= maxBlocks && int64(s.blocks) <= size/BlockSize &&
			s.groupBlocks > 0 && s.groupBlocks <= maxGroupBlocks,
		"inodes": s.groupBlocks > 0 && s.groupInodes > firstFreeInode && s.groupInodes <= 8*BlockSize && s.groupInodes%inodesInBlock == 0 &&
			uint64(s.inodes) == s.groupCount()*uint64(s.groupInodes),
	} {
		if !good {
			return superblock{}, fmt.Errorf("%w: its %s", ErrFormat, what)
		}
	}
	return s, nil
}

// groupCount returns the number of groups, the last of which may be shorter.
func (s *superblock) groupCount() uint64 { return (s.blocks + s.groupBlocks - 1) / s.groupBlocks }

// readGroups reads the descriptors of all groups and what is taken in them.
func (s *superblock) readGroups(device Device) ([]group, error) {
	raw := make([]byte, s.groupCount()*descriptorSize)
	if _, err := device.ReadAt(raw, descriptorsAt); err != nil {
		return nil, fmt.Errorf("read descriptors of groups: %w", err)
	}
	groups := make([]group, s.groupCount())
	for i := range groups {
		g := decodeGroup(raw[i*descriptorSize:][:descriptorSize])
		table := uint64(s.groupInodes / inodesInBlock)
		if g.blockBitmapAt >= s.blocks || g.inodeBitmapAt >= s.blocks || g.tableAt == 0 || g.tableAt >= s.blocks || s.blocks-g.tableAt < table {
			return nil, fmt.Errorf("%w: the descriptor of group %d", ErrFormat, i)
		}
		if err := g.readBitmaps(device); err != nil {
			return nil, fmt.Errorf("read bitmaps of group %d: %w", i, err)
		}
		groups[i] = g
	}
	return groups, nil
}

// write writes what changed in the groups, and then the superblock.
func (s *superblock) write(device Device, groups []group) error {
	var freeBlocks, freeInodes uint64
	raw := make([]byte, 0, len(groups)*descriptorSize)
	for i := range groups {
		g := &groups[i]
		freeBlocks += uint64(g.freeBlocks)
		freeInodes += uint64(g.freeInodes)
		raw = append(raw, g.encode()...)
		if !g.changed {
			continue
		}
		if err := g.writeBitmaps(device); err != nil {
			return fmt.Errorf("write bitmaps of group %d: %w", i, err)
		}
	}
	if _, err := device.WriteAt(raw, descriptorsAt); err != nil {
		return fmt.Errorf("write descriptors of groups: %w", err)
	}
	le.PutUint32(s.raw[superFreeBlocksLow:], uint32(freeBlocks))
	le.PutUint32(s.raw[superFreeBlocksHigh:], uint32(freeBlocks>>32))
	le.PutUint32(s.raw[superFreeInodes:], uint32(freeInodes))
	if _, err := device.WriteAt(s.raw, superAt); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}
