package share

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// errMessage ends a session whose guest does not keep to the protocol.
var errMessage = errors.New("malformed FUSE message")

// maxName is the longest name of a file that is asked for, in bytes: no filesystem has longer ones.
const maxName = 255

// header is what every request begins with.
type header struct {
	length   uint32 // of all of it
	op       opcode
	unique   uint64 // which the reply has, too
	node     uint64
	uid, gid uint32 // who asks, in the guest
}

// readRequest reads a request into buf, which it makes longer if need be, and returns what is behind the
// header.
func readRequest(from io.Reader, buf []byte) (h header, body, grown []byte, err error) {
	buf = sized(buf, inHeaderSize)
	if _, err := io.ReadFull(from, buf); err != nil {
		return header{}, nil, buf, err
	}
	h = header{
		length: binary.LittleEndian.Uint32(buf), op: opcode(binary.LittleEndian.Uint32(buf[4:])),
		unique: binary.LittleEndian.Uint64(buf[8:]), node: binary.LittleEndian.Uint64(buf[16:]),
		uid: binary.LittleEndian.Uint32(buf[24:]), gid: binary.LittleEndian.Uint32(buf[28:]),
	}
	if h.length < inHeaderSize || h.length > guestapi.MaxFolderMessage {
		return header{}, nil, buf, fmt.Errorf("%w: %d bytes long", errMessage, h.length)
	}
	buf = sized(buf, int(h.length)-inHeaderSize)
	if _, err := io.ReadFull(from, buf); err != nil {
		return header{}, nil, buf, err
	}
	return h, buf, buf, nil
}

// sized returns a slice of that size, which is buf if it has room.
func sized(buf []byte, size int) []byte {
	if cap(buf) < size {
		return make([]byte, size)
	}
	return buf[:size]
}

// arguments are what is behind a request's header. What is read beyond their end is zero, and makes
// err say so.
type arguments struct {
	rest  []byte
	short bool
}

func (a *arguments) take(n int) []byte {
	if len(a.rest) < n {
		a.rest, a.short = nil, true
		return make([]byte, n)
	}
	taken := a.rest[:n]
	a.rest = a.rest[n:]
	return taken
}

func (a *arguments) u32() uint32 { return binary.LittleEndian.Uint32(a.take(4)) }
func (a *arguments) u64() uint64 { return binary.LittleEndian.Uint64(a.take(8)) }

// skip leaves out bytes that mean nothing here.
func (a *arguments) skip(n int) { a.take(n) }

// text takes what comes before the next NUL.
func (a *arguments) text() string {
	text, rest, ok := bytes.Cut(a.rest, []byte{0})
	a.rest = rest
	if !ok {
		a.short = true
		return ""
	}
	return string(text)
}

// err is unix.EINVAL if there was less than was read.
func (a *arguments) err() error {
	if a.short {
		return unix.EINVAL
	}
	return nil
}

// name takes the name of an entry of a directory. Those that lead elsewhere are none.
func (a *arguments) name() (string, error) {
	name := a.text()
	switch {
	case a.short, name == "", name == ".", name == "..":
		return "", unix.EINVAL
	case len(name) > maxName:
		return "", unix.ENAMETOOLONG
	}
	for _, c := range []byte(name) {
		if c == '/' {
			return "", unix.EINVAL
		}
	}
	return name, nil
}

// reply is what a request is answered with, behind room for its header.
type reply struct{ buf []byte }

func newReply(buf []byte) *reply { return &reply{buf: sized(buf, outHeaderSize)} }

func (r *reply) u16(v uint16) { r.buf = binary.LittleEndian.AppendUint16(r.buf, v) }
func (r *reply) u32(v uint32) { r.buf = binary.LittleEndian.AppendUint32(r.buf, v) }
func (r *reply) u64(v uint64) { r.buf = binary.LittleEndian.AppendUint64(r.buf, v) }

// zeros adds room for what has no meaning here.
func (r *reply) zeros(n int) {
	for range n {
		r.buf = append(r.buf, 0)
	}
}

func (r *reply) text(s string) { r.buf = append(r.buf, s...) }

// size is how much there is behind the header.
func (r *reply) size() int { return len(r.buf) - outHeaderSize }

// room returns n bytes behind what there is, which count once they are kept.
func (r *reply) room(n int) []byte {
	if free := cap(r.buf) - len(r.buf); free < n {
		grown := make([]byte, len(r.buf), len(r.buf)+n)
		copy(grown, r.buf)
		r.buf = grown
	}
	return r.buf[len(r.buf) : len(r.buf)+n]
}

func (r *reply) keep(n int) { r.buf = r.buf[:len(r.buf)+n] }

// finish fills in the header. A reply with an error has nothing else.
func (r *reply) finish(unique uint64, err error) []byte {
	code := unix.Errno(0)
	if err != nil {
		code = errnoOf(err)
		r.buf = r.buf[:outHeaderSize]
	}
	binary.LittleEndian.PutUint32(r.buf, uint32(len(r.buf)))
	binary.LittleEndian.PutUint32(r.buf[4:], uint32(-int32(code)))
	binary.LittleEndian.PutUint64(r.buf[8:], unique)
	return r.buf
}

// errnoOf is what the guest is told of an error.
func errnoOf(err error) unix.Errno {
	if code, ok := errors.AsType[unix.Errno](err); ok && code > 0 {
		return code
	}
	return unix.EIO
}
