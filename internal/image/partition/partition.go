// Package partition reads the tables of partitions on disks that anybody may have written.
package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFormat is wrapped by errors about a table that is malformed.
var ErrFormat = errors.New("malformed table of partitions")

// Partition is a part of a disk.
type Partition struct {
	Offset, Size int64 // bytes; the part is within the disk
	Root         bool  // its type says that it is a root filesystem
}

const (
	sectorSize = 512

	// The table of old, in the first sector.
	mbrMagicAt  = 510
	mbrMagic    = 0xaa55
	mbrTableAt  = 446
	mbrEntry    = 16
	mbrEntries  = 4
	mbrGuarding = 0xee // the type of what stands for all that the other table is about

	// The table of today, behind it.
	gptMagic      = "EFI PART"
	gptEntriesAt  = 72
	gptCountAt    = 80
	gptSizeAt     = 84
	gptEntry      = 128 // bytes, at least
	maxGPTEntry   = 4096
	maxGPTEntries = 1024
	gptFirstAt    = 32 // in an entry
	gptLastAt     = 40
)

// gptTypes returns the types of root filesystems for amd64 and of no partition, as they are kept.
func gptTypes() (root, none [16]byte) {
	// 4f68bce3-e8cd-4db1-96e7-fbcaf984b709
	return [16]byte{0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09}, none
}

// List returns the partitions of a disk of a size in bytes, in the order of the table; none if it
// has no table. Logical ones, which are in one of old, are left out. Its error wraps ErrFormat if
// the table is to blame.
func List(disk io.ReaderAt, size int64) ([]Partition, error) {
	const heads = 2 * sectorSize
	if size < heads {
		return nil, nil
	}
	head := make([]byte, heads)
	if _, err := disk.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read table of partitions: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(head[mbrMagicAt:]) != mbrMagic {
		return nil, nil
	}
	if string(head[sectorSize:][:len(gptMagic)]) == gptMagic {
		return listGPT(disk, size, head[sectorSize:])
	}
	var list []Partition
	for i := range mbrEntries {
		e := head[mbrTableAt+i*mbrEntry:][:mbrEntry]
		first, count := int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))
		if e[4] == 0 || e[4] == mbrGuarding || count == 0 {
			continue
		}
		p, err := newPartition(first, count, size)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func listGPT(disk io.ReaderAt, size int64, head []byte) ([]Partition, error) {
	le := binary.LittleEndian
	at, count, entry := le.Uint64(head[gptEntriesAt:]), le.Uint32(head[gptCountAt:]), le.Uint32(head[gptSizeAt:])
	if entry < gptEntry || entry > maxGPTEntry || count > maxGPTEntries || at > uint64(size)/sectorSize {
		return nil, fmt.Errorf("%w: it has %d entries of %d bytes in sector %d", ErrFormat, count, entry, at)
	}
	table := make([]byte, int64(count)*int64(entry))
	if int64(at)*sectorSize > size-int64(len(table)) {
		return nil, fmt.Errorf("%w: it is cut short", ErrFormat)
	}
	if _, err := disk.ReadAt(table, int64(at)*sectorSize); err != nil {
		return nil, fmt.Errorf("read table of partitions: %w", err)
	}
	root, none := gptTypes()
	var list []Partition
	for ; len(table) > 0; table = table[entry:] {
		kind := [16]byte(table)
		if kind == none {
			continue
		}
		first, last := le.Uint64(table[gptFirstAt:]), le.Uint64(table[gptLastAt:])
		if last < first || last > uint64(size)/sectorSize {
			return nil, fmt.Errorf("%w: a partition is from sector %d to %d", ErrFormat, first, last)
		}
		p, err := newPartition(int64(first), int64(last-first)+1, size)
		if err != nil {
			return nil, err
		}
		p.Root = kind == root
		list = append(list, p)
	}
	return list, nil
}

// newPartition returns a partition of so many sectors, which is to be within the disk.
func newPartition(first, count, size int64) (Partition, error) {
	sectors := size / sectorSize
	if first <= 0 || first > sectors || count > sectors-first {
		return Partition{}, fmt.Errorf("%w: a partition has %d sectors from %d on, on a disk of %d", ErrFormat, count, first, sectors)
	}
	return Partition{Offset: first * sectorSize, Size: count * sectorSize}, nil
}
