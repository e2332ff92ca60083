package ext4

import (
	"sort"
)

// run is a part of a file: blocks that follow one another on the device, or a hole.
type run struct {
	physical uint64 // the first block; 0: it is a hole
	count    uint64 // of blocks, at least 1
}

const (
	// maxFileBlocks is how many blocks a file may have.
	maxFileBlocks = 1 << 32
	// maxLevels is how deep trees of extents are, with the root in the inode.
	maxLevels = 6
	// initialized is the most that an extent says of blocks that were written. What is more
	// counts those that were only reserved.
	initialized = 1 << 15

	directBlocks = 12 // in an inode of old
	mapLevels    = 3
	pointerSize  = 4
)

// mapping finds the blocks of a file: by its tree of extents or, in filesystems of old, by its lists
// of blocks. It looks a block up when it is asked for, and so needs no more memory for a hostile
// file than for another.
type mapping struct {
	reader  *Reader
	root    [dataSize]byte
	extents bool
	nodes   [maxLevels]mapNode // those that were read last, by their level

	known run    // what was found last
	at    uint64 // where in the file it begins
}

// mapNode is a block that says where blocks are.
type mapNode struct {
	block uint64
	data  []byte
}

// find returns what a file has from a block on, at most to the end of a node.
func (m *mapping) find(at uint64) (run, error) {
	if at >= maxFileBlocks {
		return run{}, damaged("a file has more than %d blocks", uint64(maxFileBlocks))
	}
	if skip := at - m.at; at < m.at || skip >= m.known.count {
		find := m.findListed
		if m.extents {
			find = m.findExtent
		}
		found, err := find(at)
		if err != nil {
			return run{}, err
		}
		if p := found.physical; p != 0 && (p <= m.reader.firstBlock || p >= m.reader.blocks || m.reader.blocks-p < found.count) {
			return run{}, damaged("a file has blocks from %d on", p)
		}
		m.known, m.at = found, at
	}
	found, skip := m.known, at-m.at
	found.count -= skip
	if found.physical != 0 {
		found.physical += skip
	}
	return found, nil
}

// node reads a node, unless it is at hand.
func (m *mapping) node(level int, block uint64) ([]byte, error) {
	n := &m.nodes[level]
	if n.block == block && block != 0 {
		return n.data, nil
	}
	if n.data == nil {
		n.data = make([]byte, m.reader.blockSize)
	}
	n.block = 0
	if err := m.reader.readBlock(n.data, block); err != nil {
		return nil, err
	}
	n.block = block
	return n.data, nil
}

// findExtent goes down the tree. Each level is one less than that above it, so there is an end.
func (m *mapping) findExtent(at uint64) (run, error) {
	node, end := m.root[:], uint64(maxFileBlocks)
	for level, above := 0, maxLevels; ; level++ {
		entries, depth := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
		if le.Uint16(node) != extentMagic || entries > len(node)/extentSize-1 || depth >= above || level > 0 && depth != above-1 {
			return run{}, damaged("a tree of extents is malformed")
		}
		entry := func(i int) []byte { return node[extentSize*(i+1):][:extentSize] }
		logical := func(i int) uint64 { return uint64(le.Uint32(entry(i))) }
		next := sort.Search(entries, func(i int) bool { return logical(i) > at })
		if next < entries {
			end = min(end, logical(next))
		}
		hole := run{count: end - at}
		switch {
		case next == 0:
			return hole, nil
		case depth == 0:
			found := decodeExtent(entry(next - 1))
			skip := at - logical(next-1)
			if skip >= found.count {
				return hole, nil
			}
			found.count = min(found.count-skip, hole.count)
			if found.physical != 0 {
				found.physical += skip
			}
			return found, nil
		}
		e := entry(next - 1)
		block := uint64(le.Uint16(e[8:]))<<32 | uint64(le.Uint32(e[4:]))
		above = depth
		var err error
		if node, err = m.node(level, block); err != nil {
			return run{}, err
		}
	}
}

// decodeExtent returns what an extent has. Blocks that were only reserved are a hole.
func decodeExtent(e []byte) run {
	count := uint64(le.Uint16(e[4:]))
	if count > initialized {
		return run{count: count - initialized}
	}
	return run{physical: uint64(le.Uint16(e[6:]))<<32 | uint64(le.Uint32(e[8:])), count: count}
}

// findListed looks into the lists of blocks: the first is in the inode, and behind it are a list, a
// list of lists, and a list of those.
func (m *mapping) findListed(at uint64) (run, error) {
	pointer := func(list []byte, i uint64) uint64 { return uint64(le.Uint32(list[pointerSize*i:])) }
	if at < directBlocks {
		return listed(m.root[:directBlocks*pointerSize], at), nil
	}
	inList := m.reader.blockSize / pointerSize
	at -= directBlocks
	span := inList // of the list, in blocks of the file
	level := 0
	for ; at >= span; level++ {
		if level == mapLevels-1 {
			return run{}, damaged("a file has more blocks than a list has")
		}
		at -= span
		span *= inList
	}
	list, index := m.root[:], uint64(directBlocks+level)
	for depth := 0; ; depth++ {
		block := pointer(list, index)
		if block == 0 {
			return run{count: span - at}, nil
		}
		var err error
		if list, err = m.node(depth, block); err != nil {
			return run{}, err
		}
		if span /= inList; span == 1 {
			return listed(list, at), nil
		}
		index, at = at/span, at%span
	}
}

// listed returns the blocks of a list from one on that follow one another.
func listed(list []byte, at uint64) run {
	entry := func(i uint64) uint64 { return uint64(le.Uint32(list[pointerSize*i:])) }
	found := run{physical: entry(at), count: 1}
	for ; at+found.count < uint64(len(list)/pointerSize); found.count++ {
		if found.physical != 0 && entry(at+found.count) != found.physical+found.count ||
			found.physical == 0 && entry(at+found.count) != 0 {
			break
		}
	}
	return found
}
