package guestapi

import (
	"bytes"
	"testing"
	"time"
)

func TestClock(t *testing.T) {
	for _, want := range []Clock{
		{}, {Step: -time.Hour}, {Time: time.Unix(-5, 7)}, {Time: time.Now(), Step: 1<<63 - 1},
	} {
		got, err := DecodeClock(want.Encode())
		if err != nil || !got.Time.Equal(want.Time) || got.Step != want.Step {
			t.Errorf("%v became %v, %v", want, got, err)
		}
	}
}

func FuzzDecodeClock(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(Clock{Time: time.Unix(1, 2), Step: -3}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeClock(b)
		if (err == nil) != (len(b) == clockSize) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err == nil && !bytes.Equal(c.Encode(), b) {
			t.Errorf("%x became %x", b, c.Encode())
		}
	})
}
