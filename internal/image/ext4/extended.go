package ext4

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Extended is an extended attribute, under its name in Linux, such as "user.comment".
type Extended struct {
	Name  string
	Value []byte
}

// Extended attributes are in what is left of the inode, or in one block of the inode's
// own. Entries grow from the beginning and values from the end.
const (
	extendedMagic       = 0xea020000
	extendedEntry       = 16 // and the name behind it
	extendedAlignment   = 4
	extendedEnd         = 4 // zeros behind the last entry
	extendedHeaderInode = 4
	extendedHeaderBlock = 32
	roomInBlock         = BlockSize - extendedHeaderBlock - extendedEnd
)

// namespace is a beginning of names, and the number that stands for it.
type namespace struct {
	prefix string
	number byte
}

// isAccess tells whether it is the name of access control lists, which are kept in another form.
func (n namespace) isAccess() bool { return strings.HasPrefix(n.prefix, "system.") }

var namespaces = []namespace{
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"user.", 1},
	{"trusted.", 4},
	{"security.", 6},
}

// attribute is an attribute as it is kept.
type attribute struct {
	namespace byte
	name      string
	value     []byte
}

func (a *attribute) entrySize() int { return extendedEntry + aligned(len(a.name)) }
func (a *attribute) size() int      { return a.entrySize() + aligned(len(a.value)) }

func aligned(n int) int { return (n + extendedAlignment - 1) &^ (extendedAlignment - 1) }

// KnowsExtended tells whether attributes of that name can be kept, if they are not too large.
func KnowsExtended(name string) bool {
	for _, n := range namespaces {
		if strings.HasPrefix(name, n.prefix) {
			return true
		}
	}
	return false
}

// CheckExtended tells whether attributes can be kept, all of them together. Only those in
// the namespaces user, trusted and security can, and access control lists. An error wraps
// ErrAttributes.
func CheckExtended(list []Extended) error {
	_, _, err := encodeExtended(list)
	return err
}

// encodeExtended divides attributes between the inode and the block.
func encodeExtended(list []Extended) (inode, block []attribute, err error) {
	names := make(map[string]bool, len(list))
	inInode, inBlock := inodeExtendedRoom, roomInBlock
	for _, e := range list {
		a, err := encodeAttribute(e)
		if err == nil && names[e.Name] {
			err = errors.New("it is there twice")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %q: %w", ErrAttributes, e.Name, err)
		}
		names[e.Name] = true
		switch size := a.size(); {
		case size <= inInode:
			inode, inInode = append(inode, a), inInode-size
		case size <= inBlock:
			block, inBlock = append(block, a), inBlock-size
		default:
			return nil, nil, fmt.Errorf("%w: they need more than %d bytes", ErrAttributes, BlockSize)
		}
	}
	slices.SortFunc(block, func(a, b attribute) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	return inode, block, nil
}

const inodeExtendedRoom = InodeSize - inodeExtended - extendedHeaderInode - extendedEnd

func encodeAttribute(e Extended) (attribute, error) {
	for _, n := range namespaces {
		name, found := strings.CutPrefix(e.Name, n.prefix)
		switch {
		case !found:
			continue
		case n.isAccess():
			if name != "" {
				return attribute{}, errors.New("there is no such name")
			}
			value, err := encodeAccess(e.Value)
			return attribute{n.number, "", value}, err
		case name == "" || len(name) > MaxName || strings.ContainsRune(name, 0):
			return attribute{}, errors.New("there is no such name")
		}
		return attribute{n.number, name, e.Value}, nil
	}
	return attribute{}, errors.New("it is in no known namespace")
}

// Access control lists, as Linux hands them out and as the filesystem keeps them.
const (
	accessVersion, accessHeader, accessEntry = 2, 4, 8
	keptVersion                              = 1
	accessUser, accessGroup                  = 0x02, 0x08 // the tags of entries with an ID
)

func encodeAccess(value []byte) ([]byte, error) {
	if len(value) < accessHeader || (len(value)-accessHeader)%accessEntry != 0 || le.Uint32(value) != accessVersion {
		return nil, errors.New("it is no access control list")
	}
	kept := le.AppendUint32(nil, keptVersion)
	for at := accessHeader; at < len(value); at += accessEntry {
		kept = append(kept, value[at:at+4]...) // tag and permissions
		if tag := le.Uint16(value[at:]); tag == accessUser || tag == accessGroup {
			kept = append(kept, value[at+4:at+8]...)
		}
	}
	return kept, nil
}

// writeExtended writes attributes to the end of an inode and, if need be, to a block,
// which it returns.
func (fs *Filesystem) writeExtended(inode []byte, list []Extended) (block uint64, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	inInode, inBlock, err := encodeExtended(list)
	if err != nil {
		return 0, err
	}
	if len(inInode) > 0 {
		le.PutUint32(inode, extendedMagic)
		putAttributes(inode[extendedHeaderInode:], 0, inInode)
	}
	if len(inBlock) == 0 {
		return 0, nil
	}
	data := make([]byte, BlockSize)
	le.PutUint32(data, extendedMagic)
	le.PutUint32(data[4:], 1) // inode that it belongs to
	le.PutUint32(data[8:], 1) // block
	le.PutUint32(data[12:], putAttributes(data, extendedHeaderBlock, inBlock))
	return fs.writeNode(data)
}

// putAttributes puts entries into an area from an offset on, and their values to its end.
// It returns the hash of all.
func putAttributes(area []byte, at int, list []attribute) (hash uint32) {
	end := len(area)
	for i := range list {
		a := &list[i]
		end -= aligned(len(a.value))
		copy(area[end:], a.value)
		own := a.hash(area[end:][:aligned(len(a.value))])
		area[at] = byte(len(a.name))
		area[at+1] = a.namespace
		if len(a.value) > 0 {
			le.PutUint16(area[at+2:], uint16(end))
		}
		le.PutUint32(area[at+8:], uint32(len(a.value)))
		le.PutUint32(area[at+12:], own)
		copy(area[at+extendedEntry:], a.name)
		at += a.entrySize()
		hash = hash<<16 ^ hash>>16 ^ own
	}
	return hash
}

// hash is of the name and of the value, which is padded.
func (a *attribute) hash(value []byte) (hash uint32) {
	for _, c := range []byte(a.name) {
		hash = hash<<5 ^ hash>>27 ^ uint32(c)
	}
	for ; len(value) > 0; value = value[extendedAlignment:] {
		hash = hash<<16 ^ hash>>16 ^ le.Uint32(value)
	}
	return hash
}
