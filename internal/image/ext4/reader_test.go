package ext4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/smolvm/smolvm/internal/image/ext4/ext4test"
)

// scan returns what a Reader finds in a filesystem, by path.
func scan(t testing.TB, file string) map[string]ext4test.Node {
	t.Helper()
	device, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	info, err := device.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(device, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]ext4test.Node)
	if err := walkAll(t.Context(), r, Root, ".", all); err != nil {
		t.Fatal(err)
	}
	return all
}

// walkAll reads all there is below a directory.
func walkAll(ctx context.Context, r *Reader, i Inode, name string, all map[string]ext4test.Node) error {
	n, err := r.Node(i)
	if err != nil {
		return err
	}
	found := ext4test.Node{
		Inode: int(i), Mode: n.Mode, UID: int(n.UID), GID: int(n.GID), Links: n.Links, Size: n.Size, Modified: n.Modified,
	}
	for _, e := range n.Extended {
		if found.Extended == nil {
			found.Extended = make(map[string]string)
		}
		found.Extended[e.Name] = string(e.Value)
	}
	switch n.kind() {
	case TypeCharacter, TypeBlock:
		found.Device = fmt.Sprintf("%d:%d", n.DeviceNode.Major, n.DeviceNode.Minor)
	case TypeSymlink:
		if found.Target, err = r.Target(n); err != nil {
			return err
		}
	case TypeRegular:
		contents, err := r.Open(n)
		if err != nil {
			return err
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, contents); err != nil {
			return err
		}
		if skipped, err := sumOfData(contents); err != nil || skipped != fmt.Sprintf("%x", sum.Sum(nil)) {
			return fmt.Errorf("%s has something else but for its holes, %w", name, err)
		}
		found.SHA256 = fmt.Sprintf("%x", sum.Sum(nil))
	case TypeDirectory:
		type entry struct {
			name string
			i    Inode
		}
		var below []entry
		err := r.Names(ctx, n, func(name string, i Inode) error {
			below = append(below, entry{name, i})
			return nil
		})
		if err != nil {
			return err
		}
		for _, e := range below {
			if len(all) > 100_000 {
				return errors.New("there is too much")
			}
			if err := walkAll(ctx, r, e.i, path.Join(name, e.name), all); err != nil {
				return err
			}
		}
	}
	all[name] = found
	return nil
}

// sumOfData reads a file as who writes it does, without its holes.
func sumOfData(f *File) (string, error) {
	sum, zero, block := sha256.New(), make([]byte, BlockSize), make([]byte, BlockSize)
	for at := int64(0); at < f.Size(); {
		data, err := f.NextData(at)
		if err != nil {
			return "", err
		}
		data = min(data, f.Size())
		for ; at < data; at += min(BlockSize, data-at) {
			sum.Write(zero[:min(BlockSize, data-at)])
		}
		if at == f.Size() {
			break
		}
		n, err := f.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		sum.Write(block[:n])
		at += int64(n)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// same compares what a Reader found with what the programs of e2fsprogs did.
func same(t testing.TB, got, want map[string]ext4test.Node) {
	t.Helper()
	for name, w := range want {
		g, found := got[name]
		if !found {
			t.Errorf("%q is missing", name)
			continue
		}
		w.Blocks, w.Indexed = 0, false
		visible(g.Extended)
		visible(w.Extended)
		if fmt.Sprint(g) != fmt.Sprint(w) || !maps.Equal(g.Extended, w.Extended) {
			t.Errorf("%q:\n got %.1000q\nwant %.1000q", name, fmt.Sprint(g), fmt.Sprint(w))
		}
	}
	if len(got) != len(want) {
		t.Errorf("there are %d names, not %d", len(got), len(want))
	}
}

// visible leaves of attributes what debugfs shows: it knows only names of ASCII, and no IDs in the
// entries of access control lists that have none. And it shows contents as an attribute.
func visible(extended map[string]string) {
	for name, value := range extended {
		switch {
		case name == "system.data" || strings.ContainsFunc(name, func(c rune) bool { return c > unicode.MaxASCII }):
			delete(extended, name)
		case strings.HasPrefix(name, "system."):
			extended[name] = strings.ReplaceAll(value, "\xff\xff\xff\xff", "\x00\x00\x00\x00")
		}
	}
}

// hostTree makes a directory with something of each kind in it.
func hostTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, data []byte) { must(os.WriteFile(filepath.Join(dir, name), data, 0o640)) }
	for _, size := range []int{0, 1, 50, 60, 100, 130, 1024, 4097, 70_000, 500_000} {
		write(fmt.Sprint("file", size), noise(size))
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	for _, at := range []int64{0, 100_000, 5 << 20, 9 << 20} {
		_, err := sparse.WriteAt(noise(3000), at)
		must(err)
	}
	must(sparse.Truncate(12<<20), sparse.Close())
	for _, n := range []int{1, 59, 60, 61, 200, 1000} {
		must(os.Symlink(strings.Repeat("x", n), filepath.Join(dir, fmt.Sprint("link", n))))
	}
	must(os.Link(filepath.Join(dir, "file100"), filepath.Join(dir, "name2")))
	for _, d := range []string{"empty", "few", "many", "deep/in/it"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o750))
	}
	write("few/a", noise(5))
	for i := range 150 {
		write(fmt.Sprintf("many/a rather long name, so that there are many blocks, %04d", i), nil)
	}
	must(exec.Command("mknod", filepath.Join(dir, "null"), "c", "1", "3").Run(),
		exec.Command("mknod", filepath.Join(dir, "disk"), "b", "259", "70000").Run(),
		exec.Command("mkfifo", filepath.Join(dir, "pipe")).Run(),
		os.Chown(filepath.Join(dir, "file1"), 70000, 80000), os.Chmod(filepath.Join(dir, "file50"), 0o4711|os.ModeSetuid))
	return dir
}

// Whatever mke2fs makes, with the features of old and of today, is read as debugfs reads it.
func TestReadForeign(t *testing.T) {
	dir := hostTree(t)
	for name, options := range map[string][]string{
		"today":        {"-t", "ext4"},
		"of 1024":      {"-t", "ext4", "-b", "1024"},
		"of 2048":      {"-t", "ext4", "-b", "2048"},
		"small inodes": {"-t", "ext4", "-I", "128"},
		"large inodes": {"-t", "ext4", "-I", "1024"},
		"no extents":   {"-t", "ext4", "-O", "^extents,^64bit", "-b", "1024"},
		"32 bits":      {"-t", "ext4", "-O", "^64bit"},
		"no checksums": {"-t", "ext4", "-O", "^metadata_csum"},
		"in inodes":    {"-t", "ext4", "-O", "inline_data", "-I", "256"},
		"meta groups":  {"-t", "ext4", "-O", "meta_bg,^resize_inode,^flex_bg", "-b", "1024"},
		"clusters":     {"-t", "ext4", "-O", "bigalloc", "-C", "16384"},
		"two supers":   {"-t", "ext4", "-O", "sparse_super2"},
		"large dirs":   {"-t", "ext4", "-O", "large_dir,ea_inode"},
		"ext3":         {"-t", "ext3"},
		"ext2":         {"-t", "ext2", "-b", "1024"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "fs")
			mke2fs(t, file, append(options, "-d", dir), "64M")
			for i := range 3 {
				ext4test.Debugfs(t, file, fmt.Sprintf("ea_set -f %s few user.attribute%d", filepath.Join(dir, "file50"), i))
			}
			// Writing is what Debugfs does not do.
			extended := exec.Command("debugfs", "-w", "-f", "-", file)
			extended.Stdin = strings.NewReader("ea_set few user.one 1\nea_set file1 security.two two\n" +
				"ea_set -f " + filepath.Join(dir, "file130") + " file1 trusted.large\n")
			if out, err := extended.CombinedOutput(); err != nil {
				t.Fatalf("debugfs: %v: %s", err, out)
			}
			want := readWith(t, file, dir)
			if want["file1"].Extended["security.two"] != "two" || want["many"].Size <= 8192 {
				t.Fatalf("debugfs made %v of it", want["file1"])
			}
			same(t, scan(t, file), want)
			if out, err := exec.Command("e2fsck", "-fyD", file).CombinedOutput(); err != nil && !strings.Contains(string(out), "MODIFIED") {
				t.Fatalf("e2fsck: %v: %s", err, out)
			}
			want = readWith(t, file, dir)
			same(t, scan(t, file), want)
		})
	}
}

// readWith reads a filesystem that was made of a directory, whose files tell what is in them: debugfs
// takes all the room in an inode for contents.
func readWith(t testing.TB, file, dir string) map[string]ext4test.Node {
	t.Helper()
	all := ext4test.Read(t, file)
	for name, n := range all {
		if n.Mode&TypeMask != TypeRegular || n.Size >= dataSize {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		n.SHA256 = fmt.Sprintf("%x", sha256.Sum256(data))
		all[name] = n
	}
	return all
}

func mke2fs(t testing.TB, file string, options []string, size string) {
	t.Helper()
	args := append(append([]string{"-q", "-F"}, options...), file, size)
	if out, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
}

// An access control list is what it was before it was written.
func TestDecodeAccess(t *testing.T) {
	value := binary.LittleEndian.AppendUint32(nil, accessVersion)
	for _, entry := range [][3]uint32{{0x01, 7, 1<<32 - 1}, {accessUser, 5, 1000}, {0x04, 4, 1<<32 - 1}, {accessGroup, 1, 70000}, {0x10, 5, 1<<32 - 1}} {
		value = binary.LittleEndian.AppendUint16(value, uint16(entry[0]))
		value = binary.LittleEndian.AppendUint16(value, uint16(entry[1]))
		value = binary.LittleEndian.AppendUint32(value, entry[2])
	}
	kept, err := encodeAccess(value)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeAccess(kept)
	if err != nil || !bytes.Equal(got, value) {
		t.Errorf("%x became %x, %v", value, got, err)
	}
	for n := range kept {
		if _, err := decodeAccess(kept[:n]); err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
}

// What cannot be read is said to be what it is.
func TestUnreadable(t *testing.T) {
	base := smallest(t)
	patched := func(at int, value ...byte) []byte {
		b := bytes.Clone(base)
		copy(b[at:], value)
		return b
	}
	for what, c := range map[string]struct {
		data []byte
		want error
	}{
		"nothing":        {nil, ErrDamaged},
		"zeros":          {make([]byte, 1<<16), ErrDamaged},
		"cut":            {base[:len(base)/2], ErrDamaged},
		"not unmounted":  {patched(superAt+superIncompatible, base[superAt+superIncompatible]|featureRecover), ErrUnclean},
		"with errors":    {patched(superAt+superState, stateClean|stateErrors), ErrUnclean},
		"encrypted":      {patched(superAt+superIncompatible+2, 1), ErrUnsupported},
		"compressed":     {patched(superAt+superIncompatible, base[superAt+superIncompatible]|featureCompression), ErrUnsupported},
		"a journal":      {patched(superAt+superIncompatible, featureJournal), ErrUnsupported},
		"huge blocks":    {patched(superAt+superLogBlockSize, 20), ErrDamaged},
		"no groups":      {patched(superAt+superGroupBlocks, 0, 0, 0, 0), ErrDamaged},
		"odd inodes":     {patched(superAt+superInodeSize, 130), ErrDamaged},
		"too many files": {patched(superAt+superInodes, 255, 255, 255, 255), ErrDamaged},
	} {
		if _, err := NewReader(bytes.NewReader(c.data), int64(len(c.data))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// smallest is a filesystem with one of each kind.
func smallest(t testing.TB) []byte {
	t.Helper()
	dir, file := hostTree(t), filepath.Join(t.TempDir(), "fs")
	if err := os.RemoveAll(filepath.Join(dir, "file500000")); err != nil {
		t.Fatal(err)
	}
	mke2fs(t, file, []string{"-t", "ext4", "-O", "^has_journal,inline_data", "-b", "1024", "-I", "256", "-N", "600", "-d", dir}, "1M")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// slowest is far more than reading a small filesystem takes.
const slowest = 10 * time.Second

// Whatever is in a filesystem, reading all of it ends, without a fault, and says what is wrong.
func FuzzReader(f *testing.F) {
	base := smallest(f)
	var used []int // where something is that is not zero
	for at, b := range base {
		if b != 0 && (at < 300<<10 || at%64 == 0) {
			used = append(used, at)
		}
	}
	f.Add([]byte{})
	f.Add([]byte{0, 0, 10, 3, 0, 1, 0, 255})
	f.Fuzz(func(t *testing.T, changes []byte) {
		data := bytes.Clone(base)
		for len(changes) >= 4 {
			at := used[int(binary.BigEndian.Uint32(append([]byte{0}, changes[:3]...)))%len(used)]
			data[at], changes = changes[3], changes[4:]
		}
		r, err := NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			blamed(t, err)
			return
		}
		all := make(map[string]ext4test.Node)
		start := time.Now()
		readable(t, r, Root, 0, all)
		if took := time.Since(start); took > slowest {
			t.Fatalf("took %v", took)
		}
	})
}

// readable reads what it can of all that is below a directory.
func readable(t *testing.T, r *Reader, i Inode, depth int, all map[string]ext4test.Node) {
	const deepest, most, part = 20, 500, 64 << 10
	n, err := r.Node(i)
	if err != nil || depth > deepest || len(all) > most {
		blamed(t, err)
		return
	}
	all[fmt.Sprint(len(all))] = ext4test.Node{}
	switch n.kind() {
	case TypeSymlink:
		_, err = r.Target(n)
		blamed(t, err)
	case TypeRegular:
		contents, err := r.Open(n)
		if err == nil {
			_, err = io.CopyN(io.Discard, contents, part)
		}
		blamed(t, err)
		_, err = contents.NextData(n.Size / 2)
		blamed(t, err)
	case TypeDirectory:
		blamed(t, r.Names(t.Context(), n, func(_ string, i Inode) error {
			readable(t, r, i, depth+1, all)
			return nil
		}))
	}
}

func blamed(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrUnclean) && !errors.Is(err, io.EOF) {
		t.Errorf("it says %v", err)
	}
}
