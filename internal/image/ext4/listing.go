package ext4

import (
	"context"
	"fmt"
	"strings"
)

// parentSize is what comes before the entries of a directory that is in its inode: its parent.
const parentSize = 4

// Names calls visit with each name in a directory, but for "." and "..", and its inode, in no order.
// A name may come twice. It is a sound one: see Entry.
func (r *Reader) Names(ctx context.Context, n *Node, visit func(name string, i Inode) error) error {
	err := r.names(ctx, n, visit)
	if err != nil {
		return fmt.Errorf("read directory of inode %d: %w", n.Inode, err)
	}
	return nil
}

func (r *Reader) names(ctx context.Context, n *Node, visit func(name string, i Inode) error) error {
	switch {
	case n.kind() != TypeDirectory:
		return damaged("it is none")
	case n.flags&flagInline != 0:
		if err := r.entries(n.data[parentSize:], visit); err != nil {
			return err
		}
		return r.entries(n.inline, visit)
	}
	m := r.contents(n).mapping
	block := make([]byte, r.blockSize)
	for at, end := uint64(0), uint64(n.Size)/r.blockSize; at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		found, err := m.find(at)
		if err != nil {
			return err
		}
		found.count = min(found.count, end-at)
		at += found.count
		if found.physical == 0 {
			if err := r.spend(1); err != nil {
				return err
			}
			continue
		}
		if err := r.spend(found.count); err != nil {
			return err
		}
		for i := range found.count {
			if err := r.readBlock(block, found.physical+i); err != nil {
				return err
			}
			if err := r.entries(block, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// spend takes from what may be read of directories.
func (r *Reader) spend(blocks uint64) error {
	if blocks > r.left {
		return damaged("its directories have more than all of its blocks")
	}
	r.left -= blocks
	return nil
}

// entries reads the entries in a block of a directory. Those of an index, and the checksum at the
// end, look like entries of no inode.
func (r *Reader) entries(block []byte, visit func(name string, i Inode) error) error {
	for len(block) >= entryHeader {
		size, length := r.entryLength(le.Uint16(block[4:])), int(block[6])
		if size < entryHeader || size%entryAlignment != 0 || size > len(block) || length > size-entryHeader {
			return damaged("an entry of %d bytes has a name of %d", size, length)
		}
		i, name := Inode(le.Uint32(block)), string(block[entryHeader:][:length])
		block = block[size:]
		switch {
		case i == 0 || name == "." || name == "..":
			continue
		case name == "" || strings.ContainsAny(name, "/\x00"):
			return damaged("there is a name %q in it", name)
		}
		if err := visit(name, i); err != nil {
			return err
		}
	}
	return nil
}

// entryLength decodes the length of an entry, for which 16 bits are too few in the largest blocks.
func (r *Reader) entryLength(n uint16) int {
	const largest = 1 << 16
	switch {
	case r.blockSize < largest:
		return int(n)
	case n == 0 || n == largest-1:
		return largest
	}
	return int(n)&^3 | int(n)&3<<16
}
