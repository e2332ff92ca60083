package network

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// sizeofNfgenmsg is what the packet filter's messages begin with: the family, and more.
const sizeofNfgenmsg = 4

// message is one netlink message without its header.
type message struct {
	kind uint16
	data []byte
}

// messages are those of a datagram, up to one that is cut short.
func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			length := int(binary.NativeEndian.Uint32(b))
			if length < unix.SizeofNlMsghdr || length > len(b) {
				return
			}
			if !yield(message{binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:length]}) {
				return
			}
			b = b[min(aligned(length), len(b)):]
		}
	}
}

// attributes are the types and values of a message's or an attribute's content, up to
// one that is cut short.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofNlAttr || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofNlAttr:length]) {
				return
			}
			b = b[min(aligned(length), len(b)):]
		}
	}
}

// attribute is the first attribute of a type, or nil.
func attribute(b []byte, kind uint16) []byte {
	for k, value := range attributes(b) {
		if k == kind {
			return value
		}
	}
	return nil
}

// aligned rounds up to netlink's alignment of four bytes.
func aligned(n int) int { return (n + 3) &^ 3 }

// text is a string attribute without the zero at its end.
func text(b []byte) string { return unix.ByteSliceToString(b) }

// bigEndian is a number in network byte order of four or eight bytes, or 0.
func bigEndian(b []byte) uint64 {
	switch len(b) {
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}
