package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/smolvm/smolvm/internal/image/ext4"
	"github.com/smolvm/smolvm/internal/image/ext4/ext4test"
)

// item is an entry of a layer and what it holds.
type item struct {
	tar.Header
	data string
}

func file(name, data string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data}
}
func dir(name string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o700}}
}
func symlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}
func hardlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

// packed writes a layer.
func packed(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		if h.Format == tar.FormatUnknown {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", i.Name, err)
		}
		if _, err := io.WriteString(w, i.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerOf is a layer that is stored as these bytes.
func layerOf(data []byte) Layer {
	return Layer{Name: "layer", Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

func read(t testing.TB, layers ...[]item) (*Tree, error) {
	t.Helper()
	var list []Layer
	for _, items := range layers {
		list = append(list, layerOf(packed(t, items...)))
	}
	return Read(t.Context(), list, Limits{}, nil)
}

func compressed(t testing.TB, with string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch with {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		w, err = zstd.NewWriter(&b)
	case "xz":
		w, err = xz.NewWriter(&b)
	default:
		return data
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// nodes returns what a tree says that there must be in a filesystem. Contents are missing.
func nodes(t *Tree) map[string]ext4test.Node {
	all := make(map[string]ext4test.Node)
	numbers := make(map[*inode]int)
	var walk func(name string, n *inode)
	walk = func(name string, n *inode) {
		if numbers[n] == 0 {
			numbers[n] = len(numbers) + 1
		}
		node := ext4test.Node{
			Inode: numbers[n], Mode: n.mode, UID: int(n.uid), GID: int(n.gid), Size: n.size, Modified: n.modified.UTC(),
			Target: n.target, Links: int(n.links),
		}
		if kind := n.kind(); kind == ext4.TypeCharacter || kind == ext4.TypeBlock {
			node.Device = fmt.Sprintf("%d:%d", n.device.Major, n.device.Minor)
		}
		for _, e := range n.extended {
			if node.Extended == nil {
				node.Extended = make(map[string]string)
			}
			node.Extended[e.Name] = string(e.Value)
		}
		all[name] = node
		if n.isDir() {
			for _, child := range slices.Sorted(maps.Keys(n.children)) {
				walk(path.Join(name, child), n.children[child].inode)
			}
		}
	}
	walk(".", t.root)
	return all
}

// text says what is in a tree, a line for a name, with what matters for merging.
func text(t *Tree) string {
	var b strings.Builder
	all := nodes(t)
	first := make(map[int]string)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name == "." {
			continue
		}
		n := all[name]
		fmt.Fprintf(&b, "%s %o", name, n.Mode&0o7777)
		switch n.Mode & ext4.TypeMask {
		case ext4.TypeDirectory:
			b.WriteString(" dir")
		case ext4.TypeRegular:
			fmt.Fprintf(&b, " %d", n.Size)
		case ext4.TypeSymlink:
			b.WriteString(" -> " + n.Target)
		default:
			b.WriteString(" special")
		}
		if is := first[n.Inode]; is != "" {
			b.WriteString(" is " + is)
		} else {
			first[n.Inode] = name
		}
		b.WriteString("\n")
	}
	return b.String()
}

// written writes a tree as a filesystem, has it checked, and returns what is in it.
func written(t testing.TB, tree *Tree, size int64) map[string]ext4test.Node {
	t.Helper()
	file := t.TempDir() + "/ext4"
	if err := tree.WriteExt4(t.Context(), file, options(t, size)); err != nil {
		t.Fatal(err)
	}
	ext4test.Check(t, file)
	return ext4test.Read(t, file)
}

func options(t testing.TB, size int64) Ext4Options {
	t.Helper()
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Fatal(err)
	}
	return Ext4Options{Mke2fs: mke2fs, Size: size, Label: "test"}
}

// matches compares a filesystem with the tree that it was made of.
func matches(t testing.TB, tree *Tree, got map[string]ext4test.Node) {
	t.Helper()
	want := nodes(tree)
	numbers := make(map[int]int)
	for name, w := range want {
		g, found := got[name]
		if !found {
			t.Errorf("%q is missing", name)
			continue
		}
		if n, seen := numbers[w.Inode]; seen && n != g.Inode {
			t.Errorf("%q is inode %d, not %d", name, g.Inode, n)
		}
		numbers[w.Inode] = g.Inode
		g.Inode, g.Blocks, g.SHA256, g.Indexed = w.Inode, 0, "", false
		switch g.Mode & ext4.TypeMask {
		case ext4.TypeDirectory:
			g.Size, g.Links = w.Size, w.Links
		case ext4.TypeSymlink:
			g.Size = w.Size
		}
		if fmt.Sprint(g) != fmt.Sprint(w) {
			t.Errorf("%q:\n got %.1000q\nwant %.1000q", name, fmt.Sprint(g), fmt.Sprint(w))
		}
	}
	for name := range got {
		if _, found := want[name]; !found && name != lostFound {
			t.Errorf("%q is too much", name)
		}
	}
}

func sum(data string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(data))) }

// moment is a time with nanoseconds.
var moment = time.Date(2001, 2, 3, 4, 5, 6, 789_012_345, time.UTC)
