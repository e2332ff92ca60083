package rootfs

import (
	"archive/tar"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/image/ext4/ext4test"
)

// Layers are merged as they would be if they were unpacked one over the other.
func TestMerge(t *testing.T) {
	mode := func(i item, mode int64) item {
		i.Mode = mode
		return i
	}
	for name, c := range map[string]struct {
		layers [][]item
		want   string
	}{
		"a whiteout": {
			[][]item{{file("a", "1"), file("b", "1"), dir("d"), file("d/x", "1")}, {file(".wh.a", ""), file(".wh.d", ""), file(".wh.none", "")}},
			"b 644 1\n",
		},
		"a whiteout hides lower layers only": {
			[][]item{{file("a", "1"), file("d/x", "1")}, {file("a", "22"), file("d/y", "22"), file(".wh.a", ""), file(".wh.d", ""), file(".wh.d", "")}},
			"a 644 2\nd 755 dir\nd/y 644 2\n",
		},
		"a whiteout before what it makes room for": {
			[][]item{{file("a", "1"), dir("d"), file("d/x", "1")}, {file(".wh.a", ""), file(".wh.d", ""), file("a", "22"), file("d/y", "22")}},
			"a 644 2\nd 755 dir\nd/y 644 2\n",
		},
		"an opaque directory": {
			[][]item{{file("d/x", "1"), file("d/e/f", "1"), file("o", "1")}, {dir("d"), file("d/.wh..wh..opq", ""), file("d/y", "22")}},
			"d 700 dir\nd/y 644 2\no 644 1\n",
		},
		"an opaque marker behind what it does not hide": {
			[][]item{
				{mode(dir("d"), 0o711), file("d/x", "1"), mode(dir("d/e"), 0o711), file("d/e/f", "1"), mode(dir("d/k"), 0o711)},
				{file("d/y", "22"), file("d/e/g", "22"), dir("d/k"), file("d/k/z", "22"), file("d/.wh..wh..opq", ""), file("d/w", "333")},
				{file("d/v", "4444")},
			},
			"d 711 dir\nd/e 755 dir\nd/e/g 644 2\nd/k 700 dir\nd/k/z 644 2\nd/v 644 4\nd/w 644 3\nd/y 644 2\n",
		},
		"an opaque root": {
			[][]item{{file("a", "1"), file("d/x", "1")}, {file("b", "22"), file("/.wh..wh..opq", "")}},
			"b 644 2\n",
		},
		"markers for what is not there": {
			[][]item{{file("a", "1")}, {file("no/.wh..wh..opq", ""), file("no/such/.wh.x", ""), file("a/.wh.x", ""), file(".wh..wh.plnk/1.2", "22"), file(".wh..wh.aufs", "")}},
			"a 644 1\n",
		},
		"a file over a directory and a directory over a file": {
			[][]item{{file("d/x/y", "1"), file("f", "1"), symlink("s", "d")}, {file("d", "22"), dir("f"), file("f/x", "22"), dir("s")}},
			"d 644 2\nf 700 dir\nf/x 644 2\ns 700 dir\n",
		},
		"a directory over one keeps what is in it": {
			[][]item{{dir("d"), file("d/x", "1")}, {mode(dir("d"), 0o1777)}},
			"d 1777 dir\nd/x 644 1\n",
		},
		"the same name again": {
			[][]item{{file("a", "1"), file("a", "22"), dir("a"), file("a", "333"), hardlink("b", "a"), file("a", "4444")}},
			"a 644 4\nb 644 3\n",
		},
		"hard links": {
			[][]item{{file("a", "1"), hardlink("d/b", "/a"), hardlink("c", "./d/../d/b"), symlink("s", "a"), hardlink("s2", "s")}, {hardlink("e", "a"), file("a", "22"), hardlink("e", "e")}},
			"a 644 2\nc 644 1\nd 755 dir\nd/b 644 1 is c\ne 644 1 is c\ns 777 -> a\ns2 777 -> a is s\n",
		},
		"a hard link from what it replaces": {
			[][]item{{file("d/x", "1")}, {hardlink("d", "d/x")}},
			"d 644 1\n",
		},
		"a hard link to what a whiteout takes away": {
			[][]item{{file("a", "1")}, {hardlink("b", "a"), file(".wh.a", ""), file(".wh.b", "")}},
			"b 644 1\n",
		},
		"a directory that is a symbolic link": {
			[][]item{
				{dir("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/lib"), symlink("usr/up", "../../../../usr"), symlink("to", "made/there"), file("usr/lib/gone", "1")},
				{file("lib/x", "22"), file("abs/y", "22"), file("usr/up/lib/z", "22"), file("to/w", "22"), file("lib/.wh.gone", ""), hardlink("l", "abs/x")},
			},
			"abs 777 -> /lib\nl 644 2\nlib 777 -> usr/lib\nmade 755 dir\nmade/there 755 dir\nmade/there/w 644 2\nto 777 -> made/there\n" +
				"usr 755 dir\nusr/lib 700 dir\nusr/lib/x 644 2 is l\nusr/lib/y 644 2\nusr/lib/z 644 2\nusr/up 777 -> ../../../../usr\n",
		},
		"names as one may write them": {
			[][]item{{dir("."), dir("./a"), file("./a/../a//x", "1"), file("/abs", "1"), file("///more", "1"), {Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "none"}}}}},
			"a 700 dir\na/x 644 1\nabs 644 1\nmore 644 1\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := read(t, c.layers...)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(tree); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			consistent(t, tree)
		})
	}
}

// consistent checks what a tree counts.
func consistent(t testing.TB, tree *Tree) {
	t.Helper()
	links, size := make(map[*inode]int), int64(0)
	names := 0
	var walk func(n *inode)
	walk = func(n *inode) {
		for _, c := range n.children {
			if names++; links[c.inode] == 0 {
				size += c.size
			}
			links[c.inode]++
			if c.isDir() {
				if c.parent != n || c.depth != n.depth+1 {
					t.Error("a directory has another parent")
				}
				walk(c.inode)
			}
		}
	}
	walk(tree.root)
	for n, count := range links {
		if int(n.links) != count {
			t.Errorf("%d links, not %d", n.links, count)
		}
	}
	if tree.Inodes() != len(links)+1 || tree.Bytes() != size || tree.names != names {
		t.Errorf("%d inodes, %d bytes and %d names, not %d, %d and %d", tree.Inodes(), tree.Bytes(), tree.names, len(links)+1, size, names)
	}
}

// All that an entry says arrives in the filesystem.
func TestEveryKind(t *testing.T) {
	long := strings.Repeat("long name/", 30) + strings.Repeat("n", 255)
	gnu := file(strings.Repeat("gnu/", 60)+"file", "gnu")
	gnu.Format = tar.FormatGNU
	gnuLink := symlink("gnu link", strings.Repeat("t", 300))
	gnuLink.Format = tar.FormatGNU
	odd := func(kind byte, name string, major, minor int64) item {
		return item{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o6660, Uid: 1<<32 - 2, Gid: 3_000_000_000, Devmajor: major, Devminor: minor, ModTime: moment}}
	}
	attributes := file("attributes", "x")
	attributes.PAXRecords = map[string]string{
		"SCHILY.xattr.user.comment":             "a comment\nwith lines",
		"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.large":               strings.Repeat("large", 600),
		"SCHILY.xattr.btrfs.compression":        "left out",
		"SCHILY.xattr.system.posix_acl_access":  "\x02\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x04\x00\x04\x00\x00\x00\x00\x00\x20\x00\x04\x00\x00\x00\x00\x00",
		"SCHILY.xattr.trusted.something.of.one": "",
	}
	tree, err := read(t, []item{
		file("empty", ""), file("small", "small"), file("large", strings.Repeat("0123456789abcdef", 200_000)), file("zeros", strings.Repeat("\x00", 3<<20)),
		file(long, "long"), gnu, gnuLink, symlink("short link", "short"), attributes,
		odd(tar.TypeReg, "odd file", 0, 0), odd(tar.TypeDir, "odd directory/", 0, 0), odd(tar.TypeFifo, "fifo", 0, 0),
		odd(tar.TypeChar, "character", 1, 3), odd(tar.TypeBlock, "block", 259, 70000), odd(tar.TypeChar, "whiteout", 0, 0),
		dir("lost+found"), file("lost+found/file", "found"), hardlink("lost+found/link", "small"),
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o751, Uid: 5, ModTime: moment}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := written(t, tree, 256<<20)
	// debugfs has another word for the device without numbers.
	if n := got["whiteout"]; n.Device == ":" {
		n.Device = "0:0"
		got["whiteout"] = n
	}
	matches(t, tree, got)
	for name, data := range map[string]string{
		"empty": "", "small": "small", "large": strings.Repeat("0123456789abcdef", 200_000), "zeros": strings.Repeat("\x00", 3<<20),
		long: "long", gnu.Name: "gnu", "attributes": "x", "lost+found/file": "found", "lost+found/link": "small",
	} {
		if got[name].SHA256 != sum(data) {
			t.Errorf("%q has other contents", name)
		}
	}
	if n := got["."]; n.UID != 5 || n.Mode&0o7777 != 0o751 || !n.Modified.Equal(moment) {
		t.Errorf("the root is %+v", n)
	}
	if n := got["zeros"]; n.Blocks != 0 {
		t.Errorf("zeros take %d sectors", n.Blocks)
	}
	if n := got["attributes"]; len(n.Extended) != 5 {
		t.Errorf("attributes are %q", n.Extended)
	}
}

// The filesystem's own directory is kept, whatever the image has in its place.
func TestLostFound(t *testing.T) {
	for name, items := range map[string][]item{
		"nothing": nil, "a file": {file("lost+found", "x"), hardlink("other", "lost+found")}, "a directory": {dir("lost+found"), dir("lost+found/d"), dir("a")},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := read(t, items)
			if err != nil {
				t.Fatal(err)
			}
			got := written(t, tree, 32<<20)
			matches(t, tree, got)
			if n := got[lostFound]; n.Inode != 11 || n.Mode&0o170000 != 0o040000 {
				t.Errorf("got %+v", n)
			}
		})
	}
}

// Files that are sparse in the archive are sparse in the filesystem.
func TestSparse(t *testing.T) {
	dir := t.TempDir()
	const size = 40<<20 + 5
	makeSparse(t, dir+"/sparse", size)
	for _, format := range []string{"gnu", "posix"} {
		data := command(t, "tar", "--sparse", "--format="+format, "-C", dir, "-c", "sparse")
		if len(data) > 1<<20 {
			t.Fatalf("the archive has %d bytes", len(data))
		}
		tree, err := Read(t.Context(), []Layer{layerOf(data)}, Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		checkSparse(t, written(t, tree, 64<<20)["sparse"], size)
	}
}

func checkSparse(t testing.TB, n ext4test.Node, size int64) {
	t.Helper()
	if want := sum(sparseData(size)); n.SHA256 != want || n.Size != size || n.Blocks == 0 || n.Blocks > 3*64 {
		t.Errorf("got %+v, want %s", n, want)
	}
}
