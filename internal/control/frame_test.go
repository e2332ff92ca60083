package control

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	w := &frameWriter{to: &wire}
	big := bytes.Repeat([]byte("x"), 3*maxFrame+1)
	if n, err := w.stream(frameOutput).Write(big); n != len(big) || err != nil {
		t.Fatal(n, err)
	}
	if err := w.finish(outcome{Code: 3}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	from, buffer := iotest.OneByteReader(&wire), make([]byte, maxFrame)
	for {
		kind, data, err := readFrame(from, buffer)
		if err != nil {
			t.Fatal(err)
		}
		if kind == frameFinished {
			break
		}
		got = append(got, data...)
	}
	if !bytes.Equal(got, big) {
		t.Errorf("%d bytes came through of %d", len(got), len(big))
	}
	if _, _, err := readFrame(from, buffer); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// FuzzFrames: whatever comes is either frames or an error, and no more memory than a frame's.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("i\x00\x00\x00\x02hix\x00\x00\x00\x02{}"))
	f.Add([]byte("o\xff\xff\xff\xff"))
	f.Add([]byte("o\x00\x00\x00\x09short"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var again bytes.Buffer
		w := &frameWriter{to: &again}
		from, buffer := bytes.NewReader(data), make([]byte, maxFrame)
		for {
			kind, payload, err := readFrame(from, buffer)
			if err != nil {
				break
			}
			if err := w.write(kind, payload); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(data, again.Bytes()) {
			t.Errorf("%q was read as %q", data, again.Bytes())
		}
	})
}

// FuzzProblem: an error's answer, however it is made, gives an error.
func FuzzProblem(f *testing.F) {
	f.Add([]byte(`{"error":"x","kinds":["not_running","nonsense"],"start":{}}`))
	f.Add([]byte(`{"error":"x","not_running":{"Op":"a"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if err := parseProblem(body); err == nil || err.Error() == "" {
			t.Errorf("%q gives %v", body, err)
		}
	})
}
