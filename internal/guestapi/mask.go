package guestapi

import "crypto/subtle"

// Mask disguises what the host sends in a session, so that nothing in it looks like a frame, whoever
// made it: what is in a file that goes to the guest may be another's who would like to end sessions,
// and who does not know this session's nonce. It hides nothing from those who see the stream.
type Mask struct {
	key [maskSize + maskPeriod]byte // the nonce, again and again
	at  int
}

const (
	maskPeriod = 16
	maskSize   = 16 << 10
)

// NewMask makes the mask of a session.
func NewMask(nonce [16]byte) *Mask {
	m := &Mask{}
	for i := 0; i < len(m.key); i += maskPeriod {
		copy(m.key[i:], nonce[:])
	}
	return m
}

// Apply masks what goes on the stream, or unmasks what comes from it, piece by piece: p, into to, which
// is at least as long and may be the same.
func (m *Mask) Apply(to, p []byte) {
	for len(p) > 0 {
		n := subtle.XORBytes(to, p, m.key[m.at:m.at+maskSize])
		m.at = (m.at + n) % maskPeriod
		to, p = to[n:], p[n:]
	}
}
