package guestapi

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// However a stream is cut, what was masked is what is unmasked; and nothing looks like a frame.
func TestMask(t *testing.T) {
	nonce := [16]byte{1, 2, 3, 0, 5}
	want := bytes.Repeat(testFrame(FrameHello).Append([]byte("x")), 1000)
	cut := func(data []byte) []byte {
		data = bytes.Clone(data)
		m := NewMask(nonce)
		for rest := data; len(rest) > 0; {
			n := min(rand.IntN(3*maskSize), len(rest))
			m.Apply(rest, rest[:n])
			rest = rest[n:]
		}
		return data
	}
	masked := cut(want)
	var s Scanner
	if _, _, ok := s.Scan(masked); ok {
		t.Error("a frame can be seen")
	}
	if !bytes.Equal(cut(masked), want) {
		t.Error("unmasked is not what was masked")
	}
}
