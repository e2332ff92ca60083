package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/image/ext4"
	"github.com/smolvm/smolvm/internal/image/ext4/ext4test"
)

// reread returns the tree of a filesystem in a file, which is closed when the test ends.
func reread(t testing.TB, path string) *Tree {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := FromExt4(t.Context(), file, info.Size(), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove(lostFound); err != nil {
		t.Fatal(err)
	}
	return tree
}

func sameTree(t testing.TB, got, want *Tree) {
	t.Helper()
	// With maps in them, which print in order.
	if g, w := fmt.Sprintf("%q", fmt.Sprint(nodes(got))), fmt.Sprintf("%q", fmt.Sprint(nodes(want))); g != w {
		t.Errorf("got %.3000s\nwant %.3000s", g, w)
	}
	consistent(t, got)
}

// What a tree is written to, a filesystem or an archive, makes the same tree, and that the same
// filesystem again.
func TestThereAndBack(t *testing.T) {
	seed := uint64(os.Getpid())
	for round := range uint64(6) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, round)), model: make(model)}
		var list []Layer
		for range 1 + g.IntN(4) {
			list = append(list, layerOf(packed(t, g.layer()...)))
		}
		tree, err := Read(t.Context(), list, Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		first, second := filepath.Join(t.TempDir(), "ext4"), filepath.Join(t.TempDir(), "ext4")
		if err := tree.WriteExt4(t.Context(), first, options(t, 64<<20)); err != nil {
			t.Fatal(err)
		}
		disk := reread(t, first)
		sameTree(t, disk, tree)

		var fromLayers, fromDisk bytes.Buffer
		if err := errors.Join(tree.WriteTar(t.Context(), &fromLayers), disk.WriteTar(t.Context(), &fromDisk)); err != nil {
			t.Fatal(err)
		}
		for _, archive := range [][]byte{fromLayers.Bytes(), fromDisk.Bytes()} {
			again, err := Read(t.Context(), []Layer{layerOf(archive)}, Limits{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			sameTree(t, again, tree)
			if err := again.WriteExt4(t.Context(), second, options(t, 64<<20)); err != nil {
				t.Fatal(err)
			}
			got, want := ext4test.Read(t, second), ext4test.Read(t, first)
			for name, n := range want {
				if got[name].SHA256 != n.SHA256 || got[name].Blocks != n.Blocks {
					t.Errorf("%q is %+v, not %+v", name, got[name], n)
				}
			}
			if err := os.Remove(second); err != nil {
				t.Fatal(err)
			}
		}
		var again bytes.Buffer
		if err := disk.WriteTar(t.Context(), &again); err != nil || !bytes.Equal(again.Bytes(), fromDisk.Bytes()) {
			t.Errorf("the same tree makes another archive, %v", err)
		}
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
}

// A filesystem in which directories are in themselves, or files are larger than the limits, is refused.
func TestHostileDisk(t *testing.T) {
	tree, err := read(t, []item{dir("a"), dir("a/b"), file("a/file", "text"), file("large", "some more text")})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ext4")
	if err := tree.WriteExt4(t.Context(), path, options(t, 16<<20)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	numbers := ext4test.Read(t, path)
	from := func(data []byte, limits Limits) error {
		_, err := FromExt4(t.Context(), bytes.NewReader(data), int64(len(data)), limits)
		return err
	}
	if err := from(data, Limits{}); err != nil {
		t.Fatalf("without any harm: %v", err)
	}
	// entry is how a directory has a name, up to its length.
	entry := func(name, as string) []byte {
		return append([]byte{byte(numbers[as].Inode), 0, 0, 0, 12, 0, byte(len(name)), 2}, name...)
	}
	for what, target := range map[string]string{"itself": "a", "the root": ".", "its own file's": "a/file"} {
		// The last entry is as long as its block has room.
		old := bytes.Clone(entry("b", "a/b"))
		at := bytes.Index(data, old)
		if at < 0 {
			t.Fatal("the entry was not found")
		}
		changed := bytes.Clone(data)
		copy(changed[at:], entry("b", target))
		switch err := from(changed, Limits{}); {
		case target == "a/file":
			if err != nil {
				t.Errorf("with a second name: %v", err)
			}
		case !errors.Is(err, ext4.ErrDamaged):
			t.Errorf("with %s in it: %v", what, err)
		}
	}
	if err := from(data, Limits{Entries: 3}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("with too many names: %v", err)
	}
	if err := from(data, Limits{Bytes: 10}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("with too many bytes: %v", err)
	}
}

// Whatever a file is called, it is called so in the archive; but for what means something else there.
func TestOddNames(t *testing.T) {
	tree := newTree(Limits{})
	names := []string{
		"\xff\xfe", "new\nline", "a=b", " ", "-", "..a", "...", "tab\t", "quote\"", "back\\slash", "\u202e", strings.Repeat("x", 255), "PaxHeaders.0", "é",
	}
	for i, name := range names {
		dir := "dir" + strings.Repeat("/"+strings.Repeat("d", 60), 3)
		n := &inode{mode: ext4.TypeRegular | 0o644, modified: moment, size: 1, detail: &detail{
			extended: []ext4.Extended{{Name: "user." + name[:min(len(name), 200)], Value: []byte("\x00=\n\xff")}},
			open:     func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil },
		}}
		if strings.Contains(name, "=") {
			n.extended[0].Name = "user.plain"
		}
		if err := errors.Join(tree.put(dir+"/"+name, n), tree.Symlink(name+"/\xff", fmt.Sprint(dir, "/link", i))); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
	}
	var archive bytes.Buffer
	if err := tree.WriteTar(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
	again, err := Read(t.Context(), []Layer{layerOf(archive.Bytes())}, Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sameTree(t, again, tree)
	if err := tree.WriteFile("etc/.wh.passwd", 0o644, nil); err != nil {
		t.Fatal(err)
	}
	if err := tree.WriteTar(t.Context(), io.Discard); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("with a name that means something else: %v", err)
	}
}

func TestRemove(t *testing.T) {
	tree, err := read(t, []item{
		dir("a"), file("a/b", "text"), dir("a/c"), file("a/c/d", "text"), symlink("link", "a"), hardlink("name", "a/b"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"none", "a/none/at/all", "a/b/c", "link", "link/c", "/a/b"} {
		if err := tree.Remove(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if got, err := tree.ReadDir("/"); err != nil || fmt.Sprint(got) != "[a name]" {
		t.Errorf("there are %q, %v", got, err)
	}
	if got, err := tree.ReadDir("a"); err != nil || fmt.Sprint(got) != "[c]" {
		t.Errorf("there are %q, %v", got, err)
	}
	if _, err := tree.ReadDir("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	if err := errors.Join(tree.RemoveBelow("a"), tree.RemoveBelow("none"), tree.RemoveBelow("name")); err != nil {
		t.Error(err)
	}
	if got, err := tree.ReadDir("a"); err != nil || len(got) > 0 {
		t.Errorf("there are %q, %v", got, err)
	}
	consistent(t, tree)
	if err := tree.Remove("/"); err != nil {
		t.Error(err)
	}
	if tree.Inodes() != 1 || tree.Bytes() != 0 {
		t.Errorf("there are %d files of %d bytes", tree.Inodes(), tree.Bytes())
	}
}
