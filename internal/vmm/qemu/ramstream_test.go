package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// stream composes what QEMU writes.
type stream struct{ bytes.Buffer }

func (s *stream) number(values ...any) *stream {
	for _, v := range values {
		_ = binary.Write(s, binary.BigEndian, v) // a buffer takes all
	}
	return s
}

func (s *stream) name(name string) *stream {
	s.WriteByte(byte(len(name)))
	s.WriteString(name)
	return s
}

// page adds a page's record. An empty block is the last one's.
func (s *stream) page(block string, offset uint64, content ...byte) *stream {
	flags := uint64(flagPage)
	if len(content) == 1 {
		flags = flagZero
	}
	if block == "" {
		s.number(offset | flags | flagContinue)
	} else {
		s.number(offset | flags).name(block)
	}
	s.Write(content)
	return s
}

func (s *stream) end() *stream { return s.number(uint64(flagEnd), byte(partFooter), uint32(2)) }

// begin is how each stream begins: 4 pages of memory and one of firmware.
func begin() *stream {
	s := &stream{}
	s.number(uint32(streamMagic), uint32(streamVersion), byte(partConfiguration), uint32(7))
	s.WriteString("microvm")
	s.number(byte(partSectionStart), uint32(2)).name(memorySection).number(uint32(0), uint32(4))
	return s.number(uint64(5*pageSize | flagSizes)).name(memoryID).number(uint64(4 * pageSize)).name("bios").number(uint64(pageSize)).end()
}

func part(kind byte) []byte { return append([]byte{kind}, 0, 0, 0, 2) }

func full(b byte) []byte { return bytes.Repeat([]byte{b}, pageSize) }

func split(t testing.TB, in []byte) (memory, rest []byte, err error) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var out bytes.Buffer
	m := newMemoryFile(file)
	size, err := splitStream(bytes.NewReader(in), memoryID, m, &out)
	if err == nil {
		err = m.finish(size)
	}
	if err != nil {
		return nil, nil, err
	}
	memory, err = os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return memory, out.Bytes(), nil
}

func TestSplitStream(t *testing.T) {
	const devices = "\x04and all that devices are"
	s, want := begin(), begin()
	s.Write(part(partSectionPart))
	s.page(memoryID, 0, full(1)...).page("", pageSize, full(2)...).page("", 2*pageSize, full(3)...)
	s.page("bios", 0, full(9)...).page(memoryID, 3*pageSize, 7).end()
	s.Write(part(partSectionEnd))
	// Some changed meanwhile: to something else, to zeros, and back from them.
	s.page("", pageSize, full(4)...).page("", 2*pageSize, 0).page("", 0, 0).page("", 0, full(5)...).end()
	s.WriteString(devices)
	want.Write(part(partSectionPart))
	want.page("bios", 0, full(9)...).end()
	want.Write(part(partSectionEnd))
	want.end()
	want.WriteString(devices)
	memory, rest, err := split(t, s.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if expected := bytes.Join([][]byte{full(5), full(4), full(0), full(7)}, nil); !bytes.Equal(memory, expected) {
		t.Error("the memory is not what was last told of it")
	}
	if !bytes.Equal(rest, want.Bytes()) {
		t.Errorf("what remains is %q, not %q", rest, want.Bytes())
	}
	for length := range s.Len() - len(devices) {
		if _, _, err := split(t, s.Bytes()[:length]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut after %d bytes, it says %v", length, err)
		}
	}
}

// A page that is never told of takes no room.
func TestSplitStreamLeavesHoles(t *testing.T) {
	s := begin()
	s.Write(part(partSectionEnd))
	s.page(memoryID, 0, 0).page("", 3*pageSize, 0).end()
	memory, _, err := split(t, s.Bytes())
	if err != nil || !bytes.Equal(memory, make([]byte, 4*pageSize)) {
		t.Errorf("%d bytes, %v", len(memory), err)
	}
}

func TestSplitStreamRefuses(t *testing.T) {
	for what, in := range map[string]*stream{
		"no stream":          (&stream{}).number(uint64(1)),
		"another version":    (&stream{}).number(uint32(streamMagic), uint32(streamVersion+1)),
		"another section":    (&stream{}).number(uint32(streamMagic), uint32(streamVersion), byte(partSectionStart), uint32(0)).name("block"),
		"an unknown part":    begin().number(byte(0x55)),
		"no footer":          begin().number(byte(partSectionPart), uint32(2), uint64(flagEnd), byte(0)),
		"beyond the end":     begin().number(byte(partSectionPart), uint32(2)).page(memoryID, 4*pageSize, 0),
		"an unknown block":   begin().number(byte(partSectionPart), uint32(2)).page("other", 0, 0),
		"an unknown flag":    begin().number(byte(partSectionPart), uint32(2), uint64(0x40)),
		"more than told":     begin().number(byte(partSectionPart), uint32(2), uint64(pageSize|flagSizes)).name("x").number(uint64(2 * pageSize)),
		"less than a page":   begin().number(byte(partSectionPart), uint32(2), uint64(pageSize|flagSizes)).name("x").number(uint64(1)),
		"more than there is": begin().number(byte(partSectionPart), uint32(2), ^uint64(flagMask)|flagSizes),
	} {
		if _, _, err := split(t, in.Bytes()); !errors.Is(err, errStream) {
			t.Errorf("%s: %v", what, err)
		}
	}
	none := (&stream{}).number(uint32(streamMagic), uint32(streamVersion))
	none.number(byte(partSectionStart), uint32(2)).name(memorySection).number(uint32(0), uint32(4), uint64(flagEnd), byte(partFooter), uint32(2))
	none.Write(part(partSectionEnd))
	none.end()
	if _, _, err := split(t, none.Bytes()); !errors.Is(err, errStream) {
		t.Errorf("no memory: %v", err)
	}
}

// Whatever comes, it ends with a result or an error, and what is taken apart has no page that
// was not in it.
func FuzzSplitStream(f *testing.F) {
	s := begin()
	s.Write(part(partSectionEnd))
	s.page(memoryID, 0, full(1)...).page("bios", 0, full(2)...).page(memoryID, pageSize, 0).end()
	s.WriteString("devices")
	f.Add(s.Bytes())
	f.Add(begin().Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		var rest bytes.Buffer
		size, err := splitStream(bytes.NewReader(in), memoryID, discarded{t}, &rest)
		if err == nil && (size <= 0 || rest.Len() > len(in)) {
			t.Errorf("%d bytes of memory, %d of %d left", size, rest.Len(), len(in))
		}
	})
}

// discarded takes pages, and sees to it that they can be.
type discarded struct{ t *testing.T }

func (d discarded) write(page []byte, offset int64) error {
	if len(page) != pageSize || offset < 0 || offset%pageSize != 0 || offset > maxMemory {
		d.t.Errorf("page of %d bytes at %#x", len(page), offset)
	}
	return nil
}

func (d discarded) clear(offset int64) error { return d.write(make([]byte, pageSize), offset) }
