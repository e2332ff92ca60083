package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"testing"
)

// notedKernel returns an ELF kernel with a segment of notes.
func notedKernel(notes []byte) []byte {
	const header, program = 64, 56
	le := binary.LittleEndian
	data := make([]byte, header+program)
	copy(data, "\x7fELF\x02\x01\x01")
	le.PutUint16(data[16:], 2)
	le.PutUint16(data[18:], 62)
	le.PutUint32(data[20:], 1)
	le.PutUint64(data[32:], header)
	le.PutUint16(data[52:], header)
	le.PutUint16(data[54:], program)
	le.PutUint16(data[56:], 1)
	p := data[header:]
	le.PutUint32(p, 4) // notes
	le.PutUint64(p[8:], uint64(len(data)))
	le.PutUint64(p[32:], uint64(len(notes)))
	return append(data, notes...)
}

// note is one with that name and type, and four bytes.
func note(name string, kind uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(name)))
	b = le.AppendUint32(b, 4)
	b = le.AppendUint32(b, kind)
	b = append(b, name...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return append(b, 1, 2, 3, 4)
}

func TestCheckEntry(t *testing.T) {
	other, entry := note("GNU\x00", 18), note("Xen\x00", 18)
	for name, c := range map[string]struct {
		notes []byte
		want  error
	}{
		"alone":       {entry, nil},
		"after other": {append(other, entry...), nil},
		"other name":  {other, ErrUnsuitable},
		"other type":  {note("Xen\x00", 6), ErrUnsuitable},
		"none":        {nil, ErrUnsuitable},
		"cut":         {entry[:len(entry)-1], ErrUnsuitable},
		"huge":        {[]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x12\x00\x00\x00Xen\x00"), ErrUnsuitable},
	} {
		if err := CheckEntry(notedKernel(c.notes)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckEntry([]byte("no ELF")); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func TestVersion(t *testing.T) {
	if v, err := Version([]byte("..Linux version %s..Linux version 6.1.0-18-amd64 (someone@somewhere)")); err != nil || v != "6.1.0-18-amd64" {
		t.Errorf("got %q, %v", v, err)
	}
	for _, text := range []string{"", "Linux version 6.1", "Linux version 6/../../x (y)"} {
		if v, err := Version([]byte(text)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %q, %v", text, v, err)
		}
	}
}

func TestBuiltIn(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte("CONFIG_EXT4_FS=y\nCONFIG_VIRTIO_BLK=m\n# CONFIG_VIRTIO_NET is not set\n")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	drivers := map[string]string{"ext4": "CONFIG_EXT4_FS", "virtio_blk": "CONFIG_VIRTIO_BLK", "virtio_net": "CONFIG_VIRTIO_NET"}
	m, err := BuiltIn([]byte("code"+configBegin+packed.String()+configEnd+"code"), drivers)
	if err != nil {
		t.Fatal(err)
	}
	if order, err := m.LoadOrder("ext4"); err != nil || len(order) != 0 {
		t.Errorf("got %q, %v", order, err)
	}
	for _, name := range []string{"virtio_blk", "virtio_net"} {
		if _, err := m.LoadOrder(name); !errors.Is(err, ErrNoModule) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := BuiltIn([]byte("code"), drivers); !errors.Is(err, ErrNoModule) {
		t.Errorf("got %v", err)
	}
	if _, err := BuiltIn([]byte(configBegin+"x"+configEnd), drivers); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(notedKernel(note("Xen\x00", 18)))
	f.Add([]byte("Linux version 6.1 (" + configBegin + configEnd))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Version(data)
		_ = CheckEntry(data)
		_, _ = BuiltIn(data, map[string]string{"ext4": "CONFIG_EXT4_FS"})
	})
}
