package qemu

import (
	"bytes"
	"testing"
)

func TestLineEnds(t *testing.T) {
	const said, want = "one\r\ntwo\r\r\n\r\n3%\r4%\rdone\r\n", "one\ntwo\r\n\n3%\r4%\rdone\n"
	for size := 1; size <= len(said); size++ {
		var got bytes.Buffer
		ends := &lineEnds{to: &got}
		for rest := []byte(said); len(rest) > 0; {
			part := rest[:min(size, len(rest))]
			if n, err := ends.Write(part); n != len(part) || err != nil {
				t.Fatalf("write %q: %d, %v", part, n, err)
			}
			rest = rest[len(part):]
		}
		if got.String() != want {
			t.Errorf("in parts of %d: %q", size, got.String())
		}
	}
}
