package ext4

import (
	"fmt"
	"math"
	"time"
)

// The flags of inodes in foreign filesystems.
const (
	flagCompressed = 0x4
	flagEncrypted  = 0x800
	flagAttribute  = 0x200000 // it has the value of an extended attribute
	flagInline     = 0x10000000
)

// extraForTimes is how much of an inode behind the first 128 bytes has the nanoseconds of Modified.
const extraForTimes = inodeModifiedExtra + 4 - inodeExtraSize

// Node is what an inode of a foreign filesystem says.
type Node struct {
	Attributes
	Inode Inode
	Size  int64 // bytes; at least 0

	flags  uint32
	data   [dataSize]byte
	inline []byte // what data has no room for, if the contents are in the inode
}

// Node reads an inode. Extended attributes that are in no namespace that can be kept are left out.
func (r *Reader) Node(i Inode) (*Node, error) {
	raw, err := r.readInode(i)
	if err != nil {
		return nil, err
	}
	n := &Node{Inode: i, flags: le.Uint32(raw[inodeFlags:])}
	n.Mode = uint32(le.Uint16(raw[inodeMode:]))
	n.UID = uint32(le.Uint16(raw[inodeUIDLow:])) | uint32(le.Uint16(raw[inodeUIDHigh:]))<<16
	n.GID = uint32(le.Uint16(raw[inodeGIDLow:])) | uint32(le.Uint16(raw[inodeGIDHigh:]))<<16
	n.Links = int(le.Uint16(raw[inodeLinks:]))
	copy(n.data[:], raw[inodeData:])
	if err := n.check(); err != nil {
		return nil, err
	}
	size := uint64(le.Uint32(raw[inodeSizeLow:]))
	if kind := n.kind(); kind == TypeRegular || kind == TypeDirectory && r.features&featureLargeDir != 0 {
		size |= uint64(le.Uint32(raw[inodeSizeHigh:])) << 32
	}
	if size > math.MaxInt64-r.blockSize {
		return nil, damaged("inode %d has %d bytes", i, size)
	}
	n.Size = int64(size)
	n.Modified = decodeTime(raw)
	if kind := n.kind(); kind == TypeCharacter || kind == TypeBlock {
		n.DeviceNode = decodeDevice(n.data[:])
	}
	if err := r.readExtended(n, raw); err != nil {
		return nil, fmt.Errorf("extended attributes of inode %d: %w", i, err)
	}
	return n, nil
}

func (n *Node) kind() uint32 { return n.Mode & TypeMask }

func (n *Node) check() error {
	switch n.kind() {
	case TypeRegular, TypeDirectory, TypeSymlink, TypeCharacter, TypeBlock, TypeFIFO, TypeSocket:
	default:
		return damaged("inode %d has the mode %#o", n.Inode, n.Mode)
	}
	switch {
	case n.flags&(flagCompressed|flagEncrypted) != 0:
		return fmt.Errorf("%w: inode %d is encrypted or compressed", ErrUnsupported, n.Inode)
	case n.flags&flagAttribute != 0:
		return damaged("inode %d is part of another", n.Inode)
	case n.UID == math.MaxUint32 || n.GID == math.MaxUint32:
		return damaged("inode %d belongs to nobody", n.Inode)
	}
	return nil
}

// extra is how much of an inode is used behind the first 128 bytes.
func extra(raw []byte) int {
	if len(raw) < inodeExtraSize+2 {
		return 0
	}
	return int(le.Uint16(raw[inodeExtraSize:]))
}

// decodeTime is the reverse of encodeTime.
func decodeTime(raw []byte) time.Time {
	seconds, nanoseconds := int64(int32(le.Uint32(raw[inodeModified:]))), int64(0)
	if extra(raw) >= extraForTimes {
		more := le.Uint32(raw[inodeModifiedExtra:])
		seconds += int64(more&3) << 32
		nanoseconds = int64(more >> 2)
	}
	if nanoseconds >= int64(time.Second) {
		nanoseconds = 0
	}
	return time.Unix(seconds, nanoseconds).UTC()
}

// decodeDevice is the reverse of DeviceNode.encode.
func decodeDevice(data []byte) DeviceNode {
	if old := le.Uint32(data); old != 0 {
		return DeviceNode{Major: old >> 8 & 0xff, Minor: old & 0xff}
	}
	n := le.Uint32(data[4:])
	return DeviceNode{Major: n >> 8 & MaxMajor, Minor: n&0xff | n>>12&^0xff}
}

// Target returns what a symbolic link leads to.
func (r *Reader) Target(n *Node) (string, error) {
	if n.kind() != TypeSymlink || n.Size == 0 || n.Size > MaxSymlink {
		return "", damaged("inode %d is no symbolic link, or leads to %d bytes", n.Inode, n.Size)
	}
	target := make([]byte, n.Size)
	if n.flags&(flagExtents|flagInline) == 0 && n.Size < dataSize {
		copy(target, n.data[:])
	} else if _, err := r.contents(n).ReadAt(target, 0); err != nil {
		return "", err
	}
	for _, c := range target {
		if c == 0 {
			return "", damaged("inode %d leads to what has a zero byte in it", n.Inode)
		}
	}
	return string(target), nil
}
