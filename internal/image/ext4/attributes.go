package ext4

import (
	"fmt"
)

// inlineNamespace and inlineName are of the attribute that has what an inode has no room for.
const (
	inlineNamespace = 7
	inlineName      = "data"
)

// readExtended reads the extended attributes of an inode: those in it, and those in its block.
func (r *Reader) readExtended(n *Node, raw []byte) error {
	if at := oldInodeSize + extra(raw); at < len(raw)-extendedHeaderInode && at >= inodeExtraSize+2 &&
		le.Uint32(raw[at:]) == extendedMagic {
		// Here values are found from the first entry on.
		if err := n.addExtended(raw[at+extendedHeaderInode:], 0); err != nil {
			return err
		}
	}
	block := uint64(le.Uint32(raw[inodeExtendedLow:]))
	if r.features&feature64Bit != 0 {
		block |= uint64(le.Uint16(raw[inodeExtendedHigh:])) << 32
	}
	if block == 0 {
		return nil
	}
	data := make([]byte, r.blockSize)
	if err := r.readBlock(data, block); err != nil {
		return err
	}
	if le.Uint32(data) != extendedMagic {
		return damaged("there are none in block %d", block)
	}
	return n.addExtended(data, extendedHeaderBlock)
}

// addExtended adds the attributes whose entries are in an area from an offset on.
func (n *Node) addExtended(area []byte, at int) error {
	for len(area)-at >= extendedEnd && le.Uint32(area[at:]) != 0 {
		if len(area)-at < extendedEntry+int(area[at]) {
			return damaged("an entry is cut short")
		}
		e := area[at:]
		name := string(e[extendedEntry:][:e[0]])
		offset, size := int(le.Uint16(e[2:])), uint64(le.Uint32(e[8:]))
		at += extendedEntry + aligned(len(name))
		if inode := le.Uint32(e[4:]); inode != 0 {
			return fmt.Errorf("%w: %q is in an inode of its own", ErrUnsupported, name)
		}
		if offset > len(area) || size > uint64(len(area)-offset) {
			return damaged("%q has %d bytes at %d", name, size, offset)
		}
		if err := n.addAttribute(e[1], name, area[offset:][:size]); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) addAttribute(namespace byte, name string, value []byte) error {
	value = append([]byte{}, value...)
	if namespace == inlineNamespace && name == inlineName {
		n.inline = value
		return nil
	}
	for _, space := range namespaces {
		if space.number != namespace {
			continue
		}
		full := space.prefix + name
		if space.isAccess() {
			decoded, err := decodeAccess(value)
			if err != nil {
				return fmt.Errorf("%q: %w", full, err)
			}
			value = decoded
		}
		n.Extended = append(n.Extended, Extended{Name: full, Value: value})
		return nil
	}
	return nil
}

// decodeAccess is the reverse of encodeAccess.
func decodeAccess(kept []byte) ([]byte, error) {
	const undefined = 1<<32 - 1 // the ID of an entry that has none
	if len(kept) < accessHeader || le.Uint32(kept) != keptVersion {
		return nil, damaged("it is no access control list")
	}
	value := le.AppendUint32(nil, accessVersion)
	for kept = kept[accessHeader:]; len(kept) > 0; {
		short := accessEntry / 2
		if len(kept) < short {
			return nil, damaged("an access control list is cut short")
		}
		id, size := uint32(undefined), short
		if tag := le.Uint16(kept); tag == accessUser || tag == accessGroup {
			if size = accessEntry; len(kept) < size {
				return nil, damaged("an access control list is cut short")
			}
			id = le.Uint32(kept[short:])
		}
		value = le.AppendUint32(append(value, kept[:short]...), id)
		kept = kept[size:]
	}
	return value, nil
}
