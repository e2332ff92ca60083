package guestapi

import "bytes"

// A virtio-serial port carries bytes, not connections: what one session left
// unread is what the next one reads first. So every session begins with frames
// that cannot be mistaken for anything else on the stream:
//
//	host                           guest
//	Hello(nonce, entropy), again
//	and again until answered  -->  drops everything that is not a Hello
//	                          <--  Echo(nonce)
//	Go(nonce), the session    -->  drops everything until this Go
//	                          <--  Ready(nonce), the session
//
// The host drops everything up to its Echo, then everything up to its Ready. A
// Hello is repeated since the first may complete what is left of a frame that
// an earlier host died in. A Hello within a session ends that session: what the
// host sends in one is masked, so that nothing in it can look like one. See Mask.

// FrameKind is the meaning of a Frame.
type FrameKind byte

// The kinds of frame.
const (
	FrameHello FrameKind = 1 + iota
	FrameEcho
	FrameGo
	FrameReady
)

// Protocol is the version of what a session and its payloads are. A guest keeps the one that it
// booted with, whoever speaks to it later. It changes with every change to them.
const Protocol = 1

// EntropySize is how many random bytes a Hello brings: enough to seed the
// guest's random number generator from nothing.
const EntropySize = 32

// Frame is one message of the resynchronisation.
type Frame struct {
	Kind  FrameKind
	Nonce [16]byte
	// Entropy is what a Hello brings for the guest to draw its first random
	// numbers from. It is zero in the other kinds, but for an Echo's first byte: see NewEcho.
	Entropy [EntropySize]byte
}

// NewEcho is the answer to a Hello.
func NewEcho(nonce [16]byte) Frame {
	f := Frame{Kind: FrameEcho, Nonce: nonce}
	f.Entropy[0] = Protocol
	return f
}

// Protocol is that of the guest, as its Echo tells.
func (f Frame) Protocol() int { return int(f.Entropy[0]) }

// magic begins every frame. Its first byte does not occur again in it, which
// lets a Scanner step over mismatches without going back.
const magic = "\xc5SmolVM\r\nresync\x04"

// FrameSize is the length of every encoded frame, in bytes.
const FrameSize = len(magic) + 1 + 16 + EntropySize

// Append appends the encoded frame to b.
func (f Frame) Append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, byte(f.Kind))
	b = append(b, f.Nonce[:]...)
	return append(b, f.Entropy[:]...)
}

// Scanner finds frames in a stream, however it is cut into pieces. Its zero
// value is ready; it is not safe for concurrent use.
type Scanner struct {
	buf [FrameSize]byte
	n   int // bytes of a frame seen so far
}

// Scan consumes p up to the end of the first frame. It returns how many bytes it
// consumed: all of them if ok is false.
func (s *Scanner) Scan(p []byte) (n int, f Frame, ok bool) {
	for i := 0; i < len(p); {
		if s.n >= len(magic) {
			c := copy(s.buf[s.n:], p[i:])
			s.n += c
			i += c
			if s.n == FrameSize {
				s.n = 0
				return i, s.frame(), true
			}
			continue
		}
		if s.n == 0 {
			// Nearly all that is scanned is something else: get over it quickly.
			next := bytes.IndexByte(p[i:], magic[0])
			if next < 0 {
				break
			}
			i += next
		}
		switch p[i] {
		case magic[s.n]:
			s.n++
		case magic[0]:
			s.n = 1
		default:
			s.n = 0
		}
		i++
	}
	return len(p), Frame{}, false
}

func (s *Scanner) frame() Frame {
	b := s.buf[len(magic):]
	f := Frame{Kind: FrameKind(b[0])}
	b = b[1+copy(f.Nonce[:], b[1:]):]
	copy(f.Entropy[:], b)
	return f
}
