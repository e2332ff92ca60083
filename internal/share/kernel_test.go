package share

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long an answer may take before a test gives up.
const patience = 20 * time.Second

// kernel is a guest's kernel, or what an enemy has in its place.
type kernel struct {
	t      *testing.T
	conn   net.Conn
	served chan error // has why the session ended
	asking sync.Mutex
	last   uint64
	uid    uint32
	gid    uint32
}

// world is a folder with something beside it that is none of the guest's.
type world struct{ folder, outside string }

func newWorld(t *testing.T) world {
	t.Helper()
	dir := t.TempDir()
	w := world{filepath.Join(dir, "folder"), filepath.Join(dir, "outside")}
	for _, d := range []string{w.folder, w.outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(w.outside, "secret"), "secret")
	return w
}

func put(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// mount begins a session with a folder, changed before.
func mount(t *testing.T, path string, readOnly bool, change ...func(*Folder)) *kernel {
	t.Helper()
	k := connect(t, path, readOnly, change...)
	k.must(opInit, 0, u32s(7, 37, 1<<20, 0xffffffff))
	return k
}

// connect begins a session in which nothing was said.
func connect(t *testing.T, path string, readOnly bool, change ...func(*Folder)) *kernel {
	t.Helper()
	f, err := Open(path, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(f)
	}
	ours, theirs := net.Pipe()
	k := &kernel{t: t, conn: ours, served: make(chan error, 1)}
	go func() {
		err := f.Serve(theirs)
		theirs.Close()
		k.served <- err
	}()
	t.Cleanup(func() {
		ours.Close()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	_ = ours.SetDeadline(time.Now().Add(patience))
	return k
}

// send sends a request with a body.
func (k *kernel) send(op opcode, node uint64, body []byte) (unique uint64) {
	k.last++
	var b []byte
	b = binary.LittleEndian.AppendUint32(b, uint32(inHeaderSize+len(body)))
	b = binary.LittleEndian.AppendUint32(b, uint32(op))
	b = binary.LittleEndian.AppendUint64(b, k.last)
	b = binary.LittleEndian.AppendUint64(b, node)
	for _, v := range []uint32{k.uid, k.gid, 1, 0} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	if _, err := k.conn.Write(append(b, body...)); err != nil {
		k.t.Fatal(err)
	}
	return k.last
}

// call sends a request and returns what it is answered with.
func (k *kernel) call(op opcode, node uint64, parts ...[]byte) ([]byte, error) {
	k.t.Helper()
	k.asking.Lock()
	defer k.asking.Unlock()
	unique := k.send(op, node, bytes.Join(parts, nil))
	head := make([]byte, outHeaderSize)
	if _, err := io.ReadFull(k.conn, head); err != nil {
		k.t.Fatalf("operation %d: %v", op, err)
	}
	rest := make([]byte, binary.LittleEndian.Uint32(head)-outHeaderSize)
	if _, err := io.ReadFull(k.conn, rest); err != nil {
		k.t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(head[8:]); got != unique {
		k.t.Fatalf("operation %d: answer to %d, not to %d", op, got, unique)
	}
	if code := -int32(binary.LittleEndian.Uint32(head[4:])); code != 0 {
		return nil, unix.Errno(code)
	}
	return rest, nil
}

func (k *kernel) must(op opcode, node uint64, parts ...[]byte) []byte {
	k.t.Helper()
	got, err := k.call(op, node, parts...)
	if err != nil {
		k.t.Fatalf("operation %d on %d: %v", op, node, err)
	}
	return got
}

// fails tells that a request is refused, and how.
func (k *kernel) fails(want unix.Errno, op opcode, node uint64, parts ...[]byte) {
	k.t.Helper()
	if _, err := k.call(op, node, parts...); !errors.Is(err, want) {
		k.t.Errorf("operation %d on %d with %q: %v, want %v", op, node, bytes.Join(parts, nil), err, want)
	}
}

func u32s(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func u64s(values ...uint64) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func names(all ...string) (b []byte) {
	for _, n := range all {
		b = append(append(b, n...), 0)
	}
	return b
}

// told is what an entry says of a file.
type told struct {
	node          uint64
	mode          uint32
	uid, gid      uint32
	size          uint64
	nlink         uint32
	mtime, mtimeN uint64
}

func entryIn(b []byte) told {
	e := attributesIn(b[40:])
	e.node = binary.LittleEndian.Uint64(b)
	return e
}

func attributesIn(b []byte) told {
	at32 := func(i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
	at64 := func(i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
	return told{size: at64(8), mtime: at64(32), mtimeN: uint64(at32(52)), mode: at32(60), nlink: at32(64), uid: at32(68), gid: at32(72)}
}

func (k *kernel) lookup(dir uint64, name string) told {
	k.t.Helper()
	return entryIn(k.must(opLookup, dir, names(name)))
}

func (k *kernel) attributes(node uint64) told {
	k.t.Helper()
	return attributesIn(k.must(opGetattr, node, u32s(0, 0), u64s(0))[16:])
}

// open returns a handle.
func (k *kernel) open(node uint64, flags uint32) uint64 {
	k.t.Helper()
	return binary.LittleEndian.Uint64(k.must(opOpen, node, u32s(flags, 0)))
}

func readBody(handle, offset uint64, size uint32) []byte {
	return bytes.Join([][]byte{u64s(handle, offset), u32s(size, 0), u64s(0), u32s(0, 0)}, nil)
}

func writeBody(handle, offset uint64, flags uint32, data string) []byte {
	return bytes.Join([][]byte{u64s(handle, offset), u32s(uint32(len(data)), 0), u64s(0), u32s(flags, 0), []byte(data)}, nil)
}

func setattrBody(what uint32, handle, size uint64, mode, uid, gid uint32) []byte {
	return bytes.Join([][]byte{
		u32s(what, 0), u64s(handle, size, 0, 7, 8, 0), u32s(70, 80, 0, mode, 0, uid, gid, 0),
	}, nil)
}

func (k *kernel) contents(node uint64) string {
	k.t.Helper()
	h := k.open(node, unix.O_RDONLY)
	defer k.must(opRelease, node, u64s(h), u32s(0, 0), u64s(0))
	return string(k.must(opRead, node, readBody(h, 0, 4096)))
}

// create makes a file and returns it, opened for writing.
func (k *kernel) create(dir uint64, name string, mode uint32) (told, uint64) {
	k.t.Helper()
	got := k.must(opCreate, dir, u32s(unix.O_RDWR|unix.O_CREAT, mode, 0, 0), names(name))
	return entryIn(got), binary.LittleEndian.Uint64(got[entrySize:])
}
