package ext4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/image/ext4/ext4test"
)

// moment is a time with nanoseconds that 32 bits do not hold.
var moment = time.Date(2101, 2, 3, 4, 5, 6, 789_012_345, time.UTC)

// made makes an empty filesystem.
func made(t testing.TB, size, inodes int64) string {
	t.Helper()
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/ext4"
	if err := Make(t.Context(), path, MakeOptions{Mke2fs: mke2fs, Size: size, Inodes: inodes, Label: "test"}); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *Filesystem {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// filler puts things into the root of a filesystem and notes what there must be.
type filler struct {
	t       testing.TB
	fs      *Filesystem
	entries []Entry
	want    map[string]ext4test.Node
}

func newFiller(t testing.TB, path string) *filler {
	return &filler{t: t, fs: open(t, path), want: make(map[string]ext4test.Node),
		entries: []Entry{{Name: "lost+found", Inode: LostFound, Mode: TypeDirectory}}}
}

func (f *filler) add(name string, a *Attributes) (Inode, ext4test.Node) {
	f.t.Helper()
	i, err := f.fs.NewInode()
	if err != nil {
		f.t.Fatal(err)
	}
	if a.Modified.IsZero() {
		a.Modified = moment
	}
	a.Links = max(a.Links, 1)
	f.entries = append(f.entries, Entry{name, i, a.Mode})
	n := ext4test.Node{Inode: int(i), Mode: a.Mode, UID: int(a.UID), GID: int(a.GID), Links: a.Links, Modified: a.Modified}
	for _, e := range a.Extended {
		if n.Extended == nil {
			n.Extended = make(map[string]string)
		}
		n.Extended[e.Name] = string(e.Value)
	}
	return i, n
}

func (f *filler) file(name string, a Attributes, data []byte) {
	f.t.Helper()
	a.Mode |= TypeRegular
	i, n := f.add(name, &a)
	if err := f.fs.WriteFile(f.t.Context(), i, a, int64(len(data)), bytes.NewReader(data)); err != nil {
		f.t.Fatal(err)
	}
	n.Size, n.SHA256 = int64(len(data)), fmt.Sprintf("%x", sha256.Sum256(data))
	f.want[name] = n
}

func (f *filler) symlink(name, target string) {
	f.t.Helper()
	a := Attributes{Mode: TypeSymlink | 0o777}
	i, n := f.add(name, &a)
	if err := f.fs.WriteSymlink(i, a, target); err != nil {
		f.t.Fatal(err)
	}
	n.Size, n.Target = int64(len(target)), target
	f.want[name] = n
}

func (f *filler) special(name string, a Attributes) {
	f.t.Helper()
	i, n := f.add(name, &a)
	if err := f.fs.WriteSpecial(i, a); err != nil {
		f.t.Fatal(err)
	}
	if kind := a.Mode & TypeMask; kind == TypeCharacter || kind == TypeBlock {
		n.Device = fmt.Sprintf("%d:%d", a.DeviceNode.Major, a.DeviceNode.Minor)
	}
	f.want[name] = n
}

// directory adds a directory in which all names are those of one empty file.
func (f *filler) directory(name string, names []string) {
	f.t.Helper()
	a := Attributes{Mode: TypeDirectory | 0o1777}
	i, n := f.add(name, &a)
	n.Links = 2
	f.want[name] = n
	var entries []Entry
	if len(names) > 0 {
		outer := f.entries
		f.file(name+"/", Attributes{Links: len(names)}, nil)
		for _, child := range names {
			f.want[name+"/"+child] = f.want[name+"/"]
			entries = append(entries, Entry{child, f.entries[len(f.entries)-1].Inode, TypeRegular})
		}
		delete(f.want, name+"/")
		f.entries = outer
	}
	if err := f.fs.WriteDirectory(i, a, Root, entries); err != nil {
		f.t.Fatal(err)
	}
}

// finish writes the root and compares all with what must be.
func (f *filler) finish(path string) map[string]ext4test.Node {
	f.t.Helper()
	root := Attributes{Mode: TypeDirectory | 0o755, UID: 70000, Modified: moment}
	if err := f.fs.WriteDirectory(Root, root, Root, f.entries); err != nil {
		f.t.Fatal(err)
	}
	if err := f.fs.Close(); err != nil {
		f.t.Fatal(err)
	}
	ext4test.Check(f.t, path)
	got := ext4test.Read(f.t, path)
	if n := got["."]; n.UID != 70000 || !n.Modified.Equal(moment) {
		f.t.Errorf("the root is %+v", n)
	}
	if n := got["lost+found"]; n.Inode != int(LostFound) || n.Size != 4*BlockSize {
		f.t.Errorf("lost+found is %+v", n)
	}
	for name, want := range f.want {
		n := got[name]
		if want.Mode&TypeMask == TypeDirectory {
			want.Size = n.Size
		}
		want.Blocks, want.Indexed = n.Blocks, n.Indexed
		if fmt.Sprint(n) != fmt.Sprint(want) || !maps.Equal(n.Extended, want.Extended) {
			f.t.Errorf("%q:\n got %.1000q\nwant %.1000q", name, fmt.Sprint(n), fmt.Sprint(want))
		}
	}
	if len(got) != len(f.want)+2 {
		f.t.Errorf("there are %d names, not %d", len(got), len(f.want)+2)
	}
	same(f.t, scan(f.t, path), got)
	return got
}

// noise is data without a zero in it.
func noise(n int) []byte {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(random.IntN(255) + 1)
	}
	return data
}

func TestEveryKind(t *testing.T) {
	path := made(t, 512<<20, 0)
	f := newFiller(t, path)
	f.file("empty", Attributes{Mode: 0o644}, nil)
	f.file("byte", Attributes{Mode: 0o4755, UID: 1<<32 - 2, GID: 1 << 31}, []byte("x"))
	f.file("block", Attributes{Mode: 0o2711, UID: 65536, GID: 65535}, noise(BlockSize))
	f.file("more", Attributes{Mode: 0o1000}, noise(BlockSize+1))
	f.file("chunks", Attributes{}, noise(3*chunkSize+5))
	f.file("zeros", Attributes{}, make([]byte, 5*chunkSize+9))
	f.file("names", Attributes{Links: 2}, []byte("two names"))
	f.entries = append(f.entries, Entry{"names2", f.entries[len(f.entries)-1].Inode, TypeRegular})
	f.want["names2"] = f.want["names"]
	for name, when := range map[string]time.Time{
		"epoch": time.Unix(0, 0), "early": time.Unix(earliest, 999_999_999), "before": time.Unix(-1, 1),
		"late": time.Unix(latest, 5), "2038": time.Unix(1<<31, 7), "wrap": time.Unix(1<<32-1, 0),
	} {
		f.file("time "+name, Attributes{Modified: when.UTC()}, nil)
	}
	f.symlink("short", strings.Repeat("s", dataSize-1))
	f.symlink("not so short", strings.Repeat("s", dataSize))
	f.symlink("long", strings.Repeat("/long", MaxSymlink/5))
	f.symlink("empty no more", ".")
	for name, d := range map[string]DeviceNode{"small": {5, 1}, "large minor": {8, 0xfffff}, "large major": {4095, 255}, "just": {255, 255}} {
		f.special("block "+name, Attributes{Mode: TypeBlock | 0o660, GID: 6, DeviceNode: d})
		f.special("character "+name, Attributes{Mode: TypeCharacter | 0o666, DeviceNode: d})
	}
	f.special("fifo", Attributes{Mode: TypeFIFO | 0o600})
	f.special("socket", Attributes{Mode: TypeSocket | 0o755})
	f.directory("dir", []string{"a", strings.Repeat("n", MaxName), "ü\xff\xfe", " "})
	f.directory("no entries", nil)
	got := f.finish(path)
	if n := got["zeros"]; n.Blocks != 0 {
		t.Errorf("zeros take %d sectors", n.Blocks)
	}
}

func TestHoles(t *testing.T) {
	path := made(t, 512<<20, 0)
	f := newFiller(t, path)
	// Data in every second place where a hole can be: a tree of extents with two levels
	// below the inode in the largest.
	for _, parts := range []int{1, 4, 5, 340, 341, 1400} {
		data := make([]byte, parts*2*holeSize+1)
		for i := range parts {
			data[i*2*holeSize+i%holeSize] = byte(i) | 1
		}
		f.file(fmt.Sprint(parts), Attributes{}, data)
	}
	// A zero block among others is not worth a hole.
	data := noise(4 * holeSize)
	clear(data[BlockSize : 3*BlockSize])
	f.file("few zeros", Attributes{}, data)
	got := f.finish(path)
	if n := got["1400"]; n.Blocks != (1400*8+6)*8 {
		t.Errorf("1400 parts take %d sectors", n.Blocks)
	}
	if n := got["few zeros"]; n.Blocks != 4*8*8 {
		t.Errorf("few zeros make it %d sectors", n.Blocks)
	}
}

func TestExtended(t *testing.T) {
	access := func(entries ...uint16) []byte {
		b := le.AppendUint32(nil, accessVersion)
		for i := 0; i < len(entries); i += 3 {
			b = le.AppendUint32(le.AppendUint16(le.AppendUint16(b, entries[i]), entries[i+1]), uint32(entries[i+2]))
		}
		return b
	}
	acl := access(1, 6, 0, 2, 7, 1000, 4, 4, 0, 8, 4, 50, 0x10, 7, 0, 0x20, 4, 0)
	path := made(t, 64<<20, 0)
	f := newFiller(t, path)
	for name, list := range map[string][]Extended{
		"capability":  {{"security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}},
		"short":       {{"user.a", []byte("b")}},
		"no value":    {{"user.nothing", nil}},
		"fits":        {{"user.fits", bytes.Repeat([]byte("f"), inodeExtendedRoom-extendedEntry-4)}},
		"fits not":    {{"user.fits", bytes.Repeat([]byte("f"), inodeExtendedRoom-extendedEntry-3)}},
		"both":        {{"user.big", noise(3000)}, {"user.small", []byte("s")}, {"trusted.x", noise(80)}, {"security.y", noise(80)}},
		"full block":  {{"user.full", noise(roomInBlock - extendedEntry - 4)}},
		"access list": {{"system.posix_acl_access", acl}},
		"long name":   {{"user." + strings.Repeat("n", 250), []byte("v")}},
		"odd name":    {{"user.\xc3\xbc", []byte("v")}},
		"many":        nil,
	} {
		if name == "many" {
			for i := range 60 {
				list = append(list, Extended{fmt.Sprintf("user.%d", i), noise(i)})
			}
		}
		if err := CheckExtended(list); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		f.file(name, Attributes{Extended: list}, []byte(name))
	}
	a := Attributes{Mode: TypeDirectory | 0o755, Modified: moment, Extended: []Extended{{"system.posix_acl_default", acl}, {"user.on", []byte("directory")}}}
	i, n := f.add("directory", &a)
	n.Links = 2
	f.want["directory"] = n
	if err := f.fs.WriteDirectory(i, a, Root, nil); err != nil {
		t.Fatal(err)
	}
	odd := f.want["odd name"]
	odd.Extended = nil // debugfs does not know how to say it
	f.want["odd name"] = odd
	f.finish(path)
	for name, list := range map[string][]Extended{
		"too large":     {{"user.full", noise(roomInBlock - extendedEntry - 3)}},
		"too many":      {{"user.a", noise(2000)}, {"user.b", noise(2000)}, {"user.c", noise(2000)}},
		"twice":         {{"user.a", nil}, {"user.a", nil}},
		"nameless":      {{"user.", nil}},
		"overlong":      {{"user." + strings.Repeat("n", 256), nil}},
		"zero":          {{"user.a\x00b", nil}},
		"nowhere":       {{"a", nil}},
		"unknown":       {{"btrfs.compression", nil}},
		"no list":       {{"system.posix_acl_access", []byte("no")}},
		"half a list":   {{"system.posix_acl_access", acl[:len(acl)-1]}},
		"no such list":  {{"system.posix_acl_access2", acl}},
		"the other one": {{"system.data", nil}},
	} {
		if err := CheckExtended(list); !errors.Is(err, ErrAttributes) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Directories of all sizes are found complete, and their indexes are as e2fsck wants them.
func TestLargeDirectories(t *testing.T) {
	path := made(t, 1<<30, 600_000) // so many that groups are small
	f := newFiller(t, path)
	for _, c := range []struct{ count, length int }{{4, 255}, {16, 240}, {341, 3}, {400, 6}, {5000, 12}, {8000, 250}, {40_000, 5}} {
		names := make([]string, c.count)
		for i := range names {
			names[i] = fmt.Sprintf("%0*x", c.length, i)
			if i%3 == 0 {
				names[i] = names[i][:c.length-1] + "\xe9" // bytes have signs
			}
			names[i] = names[i][:c.length-2] + string(rune('a'+i%7)) + names[i][c.length-1:]
		}
		unique := make(map[string]bool)
		for i, n := range names {
			if unique[n] {
				names[i] = fmt.Sprint("n", i)
			}
			unique[names[i]] = true
		}
		f.directory(fmt.Sprint(c.count), names)
	}
	got := f.finish(path)
	for name, n := range got {
		if n.Mode&TypeMask == TypeDirectory && (n.Size > BlockSize) != n.Indexed && name != "lost+found" {
			t.Errorf("%s of %d bytes: indexed %v", name, n.Size, n.Indexed)
		}
	}
}

// The hash is the one that debugfs computes.
func TestHash(t *testing.T) {
	path := made(t, 16<<20, 0)
	fs := open(t, path)
	var commands []string
	var want []uint32
	for n := range MaxName - 1 {
		name := strings.Repeat("Name\xe9+", 60)[:n+1]
		commands = append(commands, "dx_hash -h half_md4 -s "+seedText(fs.super.raw)+" "+name)
		want = append(want, fs.super.hash.name(name))
	}
	for i, out := range ext4test.Debugfs(t, path, commands...) {
		if !strings.Contains(out, fmt.Sprintf("is 0x%x ", want[i])) {
			t.Fatalf("%s: got %#x, want %s", commands[i], want[i], out)
		}
	}
}

func seedText(raw []byte) string {
	s := raw[superHashSeed:][:16]
	return fmt.Sprintf("%x-%x-%x-%x-%x", s[:4], s[4:6], s[6:8], s[8:10], s[10:])
}

// More subdirectories than a link count can say.
func TestManySubdirectories(t *testing.T) {
	path := made(t, 1<<30, 70_000)
	fs := open(t, path)
	self, err := fs.NewInode()
	if err != nil {
		t.Fatal(err)
	}
	var entries []Entry
	for n := range maxDirLinks {
		i, err := fs.NewInode()
		if err != nil {
			t.Fatal(err)
		}
		if err := fs.WriteDirectory(i, Attributes{Mode: TypeDirectory | 0o755}, self, nil); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, Entry{fmt.Sprint(n), i, TypeDirectory})
	}
	top := []Entry{{"lost+found", LostFound, TypeDirectory}, {"many", self, TypeDirectory}}
	if err := errors.Join(fs.WriteDirectory(self, Attributes{Mode: TypeDirectory | 0o755}, Root, entries),
		fs.WriteDirectory(Root, Attributes{Mode: TypeDirectory | 0o755}, Root, top), fs.Close()); err != nil {
		t.Fatal(err)
	}
	ext4test.Check(t, path)
	if out := ext4test.Debugfs(t, path, "stat many")[0]; !strings.Contains(out, "Links: 1 ") {
		t.Errorf("got %s", out)
	}
}

// A filesystem that has no room says so, and so do sizes that are not so.
func TestFailures(t *testing.T) {
	path := made(t, 16<<20, 16)
	file := Attributes{Mode: TypeRegular}
	fs := open(t, path)
	i, err := fs.NewInode()
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.WriteFile(t.Context(), i, file, 20<<20, bytes.NewReader(noise(20<<20))); !errors.Is(err, ErrFull) {
		t.Errorf("too many blocks: %v", err)
	}
	if err := fs.Close(); !errors.Is(err, ErrFull) {
		t.Errorf("closed after an error: %v", err)
	}
	fs = open(t, path)
	for err = nil; err == nil; {
		_, err = fs.NewInode()
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("too many inodes: %v", err)
	}
	for size, data := range map[int64]int{-1: 0, MaxSize + 1: 0, 100: 99, 1: 0, chunkSize + 1: chunkSize} {
		err := open(t, path).WriteFile(t.Context(), LostFound+1, file, size, bytes.NewReader(noise(data)))
		if err == nil || size > 0 && size < MaxSize && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes with %d: %v", size, data, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(t, path).WriteFile(ended, LostFound+1, file, 1, bytes.NewReader(noise(1))); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00", strings.Repeat("n", 256)} {
		if err := open(t, path).WriteDirectory(Root, Attributes{}, Root, []Entry{{name, 12, TypeRegular}}); err == nil {
			t.Errorf("a directory may hold %q", name)
		}
	}
	for _, target := range []string{"", strings.Repeat("t", MaxSymlink+1)} {
		if err := open(t, path).WriteSymlink(12, Attributes{}, target); err == nil {
			t.Errorf("a link may lead to %d bytes", len(target))
		}
	}
}

// A device that cannot be written to is why nothing more is written.
func TestBrokenDevice(t *testing.T) {
	data, err := os.ReadFile(made(t, 16<<20, 0))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for allowed := range 6 {
		device := &memory{data: bytes.Clone(data), writes: allowed, err: broken}
		fs, err := Open(device, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		i, err := fs.NewInode()
		if err != nil {
			t.Fatal(err)
		}
		err = fs.WriteFile(t.Context(), i, Attributes{Mode: TypeRegular}, 1<<20, bytes.NewReader(noise(1<<20)))
		if closed := fs.Close(); err == nil {
			err = closed
		}
		if !errors.Is(err, broken) {
			t.Errorf("after %d writes: %v", allowed, err)
		}
	}
}

// memory is a device that fails after some writes, or never if err is nil.
type memory struct {
	data   []byte
	writes int
	err    error
}

func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, at)
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if m.writes--; m.writes < 0 && m.err != nil {
		return 0, m.err
	}
	if at < 0 || at+int64(len(p)) > int64(len(m.data)) {
		return 0, io.ErrShortWrite
	}
	return copy(m.data[at:], p), nil
}

// overlay is a device whose beginning is another one's. What is written to it is forgotten.
type overlay struct{ head, rest []byte }

func (o *overlay) ReadAt(p []byte, at int64) (int, error) {
	n, err := bytes.NewReader(o.rest).ReadAt(p, at)
	if at < int64(len(o.head)) {
		copy(p[:n], o.head[at:])
	}
	return n, err
}

func (o *overlay) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(o.rest)) {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// FuzzOpen fills filesystems that no mke2fs has made.
func FuzzOpen(f *testing.F) {
	path := made(f, 16<<20, 64)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	const changed = 2 * BlockSize // superblock and descriptors
	f.Add(good[superAt:changed])
	f.Add([]byte{})
	f.Add(make([]byte, changed-superAt))
	for _, at := range []int{superInodes, superBlocksLow, superGroupInodes, superFreeInodes, BlockSize - superAt + groupTable, BlockSize - superAt + groupBlockBitmap} {
		bad := bytes.Clone(good[superAt:changed])
		bad[at] ^= 0x7f
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		data := bytes.Clone(good[:changed])
		copy(data[superAt:], head)
		fs, err := Open(&overlay{head: data, rest: good}, int64(len(good)))
		if err != nil {
			return
		}
		for range 3 {
			i, err := fs.NewInode()
			if err != nil {
				return
			}
			_ = fs.WriteFile(t.Context(), i, Attributes{Mode: TypeRegular}, 5000, bytes.NewReader(noise(5000)))
		}
		_ = fs.WriteDirectory(Root, Attributes{Mode: TypeDirectory}, Root, nil)
		_ = fs.Close()
	})
}
