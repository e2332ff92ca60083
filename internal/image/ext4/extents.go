package ext4

// A tree of extents has a header and entries in each of its nodes, the root of which is in
// the inode. All are of 12 bytes.
const (
	extentMagic    = 0xf30a
	extentSize     = 12
	maxExtent      = 1 << 15                               // blocks in an extent
	extentsInInode = dataSize/extentSize - 1               // 4
	extentsInBlock = (BlockSize - extentSize) / extentSize // 340
)

// extent is a part of a file.
type extent struct {
	logical  uint32 // the number of its first block in the file
	count    uint32 // of blocks
	physical uint64 // where the first is
}

// extents are the parts of a file, in order. What is between them is holes.
type extents struct {
	list   []extent
	blocks uint64 // in all of them
}

// add adds blocks to the end.
func (e *extents) add(next extent) {
	e.blocks += uint64(next.count)
	if len(e.list) > 0 {
		last := &e.list[len(e.list)-1]
		if last.logical+last.count == next.logical && last.physical+uint64(last.count) == next.physical &&
			last.count+next.count <= maxExtent {
			last.count += next.count
			return
		}
	}
	e.list = append(e.list, next)
}

// append writes whole blocks, which are the next of a file from a number on.
func (fs *Filesystem) append(e *extents, logical uint32, data []byte) error {
	for len(data) > 0 {
		first, count, err := fs.allocate(min(uint64(len(data)/BlockSize), maxExtent))
		if err != nil {
			return err
		}
		n := count * BlockSize
		if err := fs.out.write(data[:n], int64(first)*BlockSize); err != nil {
			return err
		}
		e.add(extent{logical: logical, count: uint32(count), physical: first})
		logical, data = logical+uint32(count), data[n:]
	}
	return nil
}

// node is an entry in a node that is not a leaf: what is below, and from which block of
// the file on that is.
type node struct {
	logical uint32
	block   uint64
}

// writeExtents writes all of the tree but its root, which it returns for the inode, and
// how many blocks the rest took.
func (fs *Filesystem) writeExtents(e *extents) (root []byte, blocks uint64, err error) {
	if len(e.list) <= extentsInInode {
		return encodeLeaf(e.list, extentsInInode), 0, nil
	}
	var level []node
	for list := e.list; len(list) > 0; {
		n := min(len(list), extentsInBlock)
		block, err := fs.writeNode(encodeLeaf(list[:n], extentsInBlock))
		if err != nil {
			return nil, 0, err
		}
		level, list = append(level, node{list[0].logical, block}), list[n:]
		blocks++
	}
	depth := uint16(1)
	for ; len(level) > extentsInInode; depth++ {
		var above []node
		for len(level) > 0 {
			n := min(len(level), extentsInBlock)
			block, err := fs.writeNode(encodeNodes(level[:n], extentsInBlock, depth))
			if err != nil {
				return nil, 0, err
			}
			above, level = append(above, node{level[0].logical, block}), level[n:]
			blocks++
		}
		level = above
	}
	return encodeNodes(level, extentsInInode, depth), blocks, nil
}

// writeNode writes a node to a block of its own.
func (fs *Filesystem) writeNode(data []byte) (uint64, error) {
	block, _, err := fs.allocate(1)
	if err != nil {
		return 0, err
	}
	return block, fs.out.write(data, int64(block)*BlockSize)
}

func encodeHeader(entries, room int, depth uint16) []byte {
	b := make([]byte, 0, BlockSize)
	b = le.AppendUint16(b, extentMagic)
	b = le.AppendUint16(b, uint16(entries))
	b = le.AppendUint16(b, uint16(room))
	b = le.AppendUint16(b, depth)
	return le.AppendUint32(b, 0)
}

func encodeLeaf(list []extent, room int) []byte {
	b := encodeHeader(len(list), room, 0)
	for _, e := range list {
		b = le.AppendUint32(b, e.logical)
		b = le.AppendUint16(b, uint16(e.count))
		b = le.AppendUint16(b, uint16(e.physical>>32))
		b = le.AppendUint32(b, uint32(e.physical))
	}
	return padded(b, room)
}

func encodeNodes(nodes []node, room int, depth uint16) []byte {
	b := encodeHeader(len(nodes), room, depth)
	for _, n := range nodes {
		b = le.AppendUint32(b, n.logical)
		b = le.AppendUint32(b, uint32(n.block))
		b = le.AppendUint16(b, uint16(n.block>>32))
		b = le.AppendUint16(b, 0)
	}
	return padded(b, room)
}

// padded makes a node as long as what it is written to.
func padded(b []byte, room int) []byte {
	if room == extentsInInode {
		return b[:dataSize]
	}
	return b[:BlockSize]
}

// releaseData gives back what an inode that mke2fs made has: a few extents at most.
func (fs *Filesystem) releaseData(i Inode) error {
	raw, err := fs.table.inode(i)
	if err != nil {
		return err
	}
	root := raw[inodeData:][:dataSize]
	entries, depth := int(le.Uint16(root[2:])), le.Uint16(root[6:])
	if le.Uint16(root) != extentMagic || depth != 0 || entries > extentsInInode {
		return nil
	}
	for k := range entries {
		e := root[extentSize*(k+1):]
		first, count := uint64(le.Uint16(e[6:]))<<32|uint64(le.Uint32(e[8:])), uint64(le.Uint16(e[4:]))
		if first+count <= fs.super.blocks {
			fs.release(first, count)
		}
	}
	return nil
}
