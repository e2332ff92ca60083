package ext4

import (
	"cmp"
	"slices"
)

// A directory with an index has it in its first block, behind the entries for itself and
// its parent, and in further blocks if it is large. For all else these are blocks with no
// entries in them. The index leads from hashes to blocks, in each of which are the entries
// from one hash on up to the next.
const (
	indexRootAt   = 2*12 + 8 // "." and "..", and what the index says of itself
	indexEntry    = 8
	indexInRoot   = (BlockSize - indexRootAt) / indexEntry
	indexInBlock  = (BlockSize - entryHeader) / indexEntry
	maxIndexed    = indexInRoot * indexInBlock // leaves
	indexContinue = 1                          // in a hash that is the last of the block before, too
)

// indexed is what an index says: from a hash on look into a block of the directory.
type indexed struct {
	hash  uint32
	block uint32
}

// indexed returns the blocks of a directory with an index, or nil if it is too large for one.
func (h *hasher) indexed(self, parent Inode, entries []Entry) []byte {
	leaves, hashes := h.leaves(entries)
	if len(hashes) > maxIndexed {
		return nil
	}
	list := make([]indexed, len(hashes))
	for i, hash := range hashes {
		list[i] = indexed{hash, uint32(i)}
	}
	// The first block is followed by those of the index, if there are any, and then by leaves.
	var nodes int
	if len(list) > indexInRoot {
		nodes = (len(list) + indexInBlock - 1) / indexInBlock
	}
	for i := range list {
		list[i].block += uint32(1 + nodes)
	}
	data := make([]byte, 0, (1+nodes)*BlockSize+len(leaves))
	levels, root := byte(0), list
	var below []byte
	if nodes > 0 {
		levels, root = 1, nil
		for len(list) > 0 {
			n := min(len(list), indexInBlock)
			root = append(root, indexed{list[0].hash, uint32(1 + len(root))})
			below = appendEntry(below, Entry{}, entryHeader)
			le.PutUint16(below[len(below)-entryHeader+4:], BlockSize)
			below = appendIndex(below, list[:n], indexInBlock)
			list = list[n:]
		}
	}
	data = appendEntry(data, Entry{".", self, TypeDirectory}, 12)
	data = appendEntry(data, Entry{"..", parent, TypeDirectory}, 12)
	le.PutUint16(data[12+4:], BlockSize-12)
	data = le.AppendUint32(data, 0)
	data = append(data, h.version, 8, levels, 0) // 8 is the length of these two words
	data = appendIndex(data, root, indexInRoot)
	return append(append(data, below...), leaves...)
}

// appendIndex fills the rest of a block. The place of the first hash, which is as good as
// zero, holds how much there is.
func appendIndex(b []byte, list []indexed, room int) []byte {
	b = le.AppendUint16(b, uint16(room))
	b = le.AppendUint16(b, uint16(len(list)))
	b = le.AppendUint32(b, list[0].block)
	for _, i := range list[1:] {
		b = le.AppendUint32(b, i.hash)
		b = le.AppendUint32(b, i.block)
	}
	return append(b, make([]byte, (room-len(list))*indexEntry)...)
}

// leaves returns blocks with all entries by their hashes, and from which hash on each is.
func (h *hasher) leaves(entries []Entry) (blocks []byte, hashes []uint32) {
	type hashed struct {
		Entry
		hash uint32
	}
	list := make([]hashed, len(entries))
	for i, e := range entries {
		list[i] = hashed{e, h.name(e.Name)}
	}
	slices.SortFunc(list, func(a, b hashed) int { return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.Name, b.Name)) })
	var b entryBlocks
	for i := range list {
		if !b.fits(&list[i].Entry) {
			hash := list[i].hash
			if i > 0 && list[i-1].hash == hash {
				hash |= indexContinue
			}
			hashes = append(hashes, hash)
		}
		b.add(list[i].Entry)
	}
	return b.finish(), hashes
}
