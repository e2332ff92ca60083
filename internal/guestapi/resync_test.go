package guestapi

import (
	"bytes"
	"strings"
	"testing"
)

func testFrame(kind FrameKind) Frame {
	f := Frame{Kind: kind}
	copy(f.Nonce[:], "0123456789abcdef")
	copy(f.Entropy[:], strings.Repeat("e", EntropySize))
	return f
}

func TestMagicNeedsNoBacktracking(t *testing.T) {
	if strings.LastIndexByte(magic, magic[0]) != 0 {
		t.Fatal("the first byte of magic occurs again in it")
	}
}

func TestScannerCutAnywhere(t *testing.T) {
	want := testFrame(FrameHello)
	// What comes before holds beginnings of frames that go astray.
	stream := append([]byte("junk"+magic[:5]+magic[:1]+magic[:len(magic)-1]), want.Append(nil)...)
	stream = append(stream, "rest"...)
	for cut := range stream {
		var s Scanner
		n, got, ok := s.Scan(stream[:cut])
		if ok != (cut >= len(stream)-4) {
			t.Fatalf("cut at %d: found a frame: %v", cut, ok)
		}
		if !ok {
			if n != cut {
				t.Fatalf("cut at %d: consumed %d bytes without a frame", cut, n)
			}
			n, got, ok = s.Scan(stream[cut:])
			n += cut
		}
		if !ok || got != want || string(stream[n:]) != "rest" {
			t.Fatalf("cut at %d: got %v %v, rest %q", cut, got, ok, stream[n:])
		}
	}
}

// A truncated frame swallows the next one, and no more than that one.
func TestScannerRecoversAfterTruncation(t *testing.T) {
	hello := testFrame(FrameHello).Append(nil)
	for cut := range hello {
		stream := bytes.Join([][]byte{hello[:cut], hello, hello, hello}, nil)
		var s Scanner
		found := 0
		for len(stream) > 0 {
			n, f, ok := s.Scan(stream)
			stream = stream[n:]
			if ok && f == testFrame(FrameHello) {
				found++
			}
		}
		if found < 2 {
			t.Fatalf("cut at %d: found %d of 3 frames", cut, found)
		}
	}
}

func FuzzScanner(f *testing.F) {
	f.Add([]byte("SSH-2.0-x\r\n"), uint8(3))
	f.Add(testFrame(FrameGo).Append([]byte(magic)), uint8(7))
	f.Add([]byte(magic[:4]+magic+magic), uint8(1))
	f.Fuzz(func(t *testing.T, noise []byte, step uint8) {
		// Whatever came before, of three frames in a row one is found, and pieces
		// make no difference.
		want := testFrame(FrameHello)
		stream := append([]byte{}, noise...)
		for range 3 {
			stream = want.Append(stream)
		}
		scan := func(size int) (frames []Frame) {
			var s Scanner
			for rest := stream; len(rest) > 0; {
				piece := rest[:min(size, len(rest))]
				n, frame, ok := s.Scan(piece)
				if n < 1 || n > len(piece) || (!ok && n != len(piece)) {
					t.Fatalf("consumed %d of %d bytes, found %v", n, len(piece), ok)
				}
				if ok {
					frames = append(frames, frame)
				}
				rest = rest[n:]
			}
			return frames
		}
		whole, pieces := scan(len(stream)), scan(int(step)+1)
		if len(whole) != len(pieces) {
			t.Fatalf("found %d frames in one piece, %d in many", len(whole), len(pieces))
		}
		found := false
		for i, frame := range whole {
			if frame != pieces[i] {
				t.Fatalf("frame %d differs between pieces", i)
			}
			found = found || frame == want
		}
		if !found {
			t.Fatal("no frame found")
		}
	})
}
