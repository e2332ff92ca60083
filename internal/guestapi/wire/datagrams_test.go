package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestQueueLosesWhatHasNoRoom(t *testing.T) {
	q := newQueue(3 * (headerSize + 10))
	for i := range 5 {
		if !q.put(bytes.Repeat([]byte{byte(i)}, 10)) {
			t.Fatal("the queue is closed")
		}
	}
	buf := make([]byte, 100)
	for i := range 3 {
		if n, err := q.get(buf); err != nil || n != 10 || buf[0] != byte(i) {
			t.Fatalf("datagram %d: %v, %v", i, buf[:n], err)
		}
	}
	q.put(nil) // an empty one is one, too
	q.put([]byte("last"))
	q.close()
	if q.put([]byte("late")) {
		t.Error("a closed queue takes more")
	}
	for _, want := range []string{"", "last"} {
		if n, err := q.get(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("got %q, %v", buf[:n], err)
		}
	}
	if _, err := q.get(buf); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

// Memory stays bounded while the queue is never empty.
func TestQueueReusesItsMemory(t *testing.T) {
	const size = 1000
	q := newQueue(size)
	buf := make([]byte, 10)
	q.put(buf)
	for i := range 100 * size {
		q.put([]byte{byte(i)})
		if n, err := q.get(buf); err != nil || i > 0 && (n != 1 || buf[0] != byte(i-1)) {
			t.Fatalf("datagram %d: %v, %v", i, buf[:n], err)
		}
	}
	if cap(q.buf) > 4*size {
		t.Errorf("holds %d bytes", cap(q.buf))
	}
}

// Whatever comes is cut into datagrams the same way, however it comes; and what a queue
// sends is read as what was put in.
func FuzzReadDatagram(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x', 0xff, 0xff})
	f.Add(append([]byte{0xff, 0xe3}, make([]byte, MaxDatagram)...))
	f.Add(append([]byte{0xff, 0xe4}, make([]byte, MaxDatagram+1)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		read := func(r io.Reader) (datagrams [][]byte, err error) {
			buf := make([]byte, MaxDatagram)
			for {
				n, err := readDatagram(r, buf)
				if err != nil {
					return datagrams, err
				}
				datagrams = append(datagrams, bytes.Clone(buf[:n]))
			}
		}
		whole, err := read(bytes.NewReader(stream))
		pieces, piecesErr := read(iotest.OneByteReader(bytes.NewReader(stream)))
		if len(whole) != len(pieces) || err.Error() != piecesErr.Error() {
			t.Fatalf("%d datagrams, %v in one piece, %d, %v in many", len(whole), err, len(pieces), piecesErr)
		}
		if tooLong := errors.Is(err, ErrTooLong); !tooLong && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		q := newQueue(len(stream) + headerSize)
		consumed := 0
		for i, d := range whole {
			if !bytes.Equal(d, pieces[i]) {
				t.Fatalf("datagram %d differs", i)
			}
			q.put(d)
			consumed += headerSize + len(d)
		}
		if sent := q.takeAllNow(); !bytes.Equal(sent, stream[:consumed]) {
			t.Fatalf("%d bytes sent of %d", len(sent), consumed)
		}
	})
}

// takeAllNow takes what there is.
func (q *queue) takeAllNow() []byte {
	q.close()
	return q.takeAll(nil)
}

func TestReadDatagramTooLong(t *testing.T) {
	header := binary.BigEndian.AppendUint16(nil, MaxDatagram+1)
	r := io.MultiReader(bytes.NewReader(header), bytes.NewReader(make([]byte, MaxDatagram+1)))
	if _, err := readDatagram(r, make([]byte, MaxDatagram)); !errors.Is(err, ErrTooLong) {
		t.Errorf("got %v", err)
	}
}
