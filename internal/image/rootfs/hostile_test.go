package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// raw is a header that no writer would write, changed by a function.
func raw(t testing.TB, i item, change func(block []byte)) []byte {
	t.Helper()
	i.Format = tar.FormatUSTAR
	data := packed(t, i)
	block := data[:512]
	change(block)
	copy(block[148:156], "        ")
	total := 0
	for _, c := range block {
		total += int(c)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", total))
	return data
}

// Layers that are not what they should be are refused, and so is what leads out of them.
func TestHostileLayers(t *testing.T) {
	many := func(n int, f func(i int) item) []item {
		var items []item
		for i := range n {
			items = append(items, f(i))
		}
		return items
	}
	attribute := func(name, value string) item {
		i := file("f", "")
		i.PAXRecords = map[string]string{extendedRecord + name: value}
		return i
	}
	owner := func(uid, gid int) item {
		i := file("f", "")
		i.Uid, i.Gid = uid, gid
		return i
	}
	device := func(major, minor int64) item {
		return item{Header: tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: major, Devminor: minor, Format: tar.FormatGNU}}
	}
	for name, c := range map[string]struct {
		items []item
		err   error
	}{
		"a name out of the root":           {[]item{file("../x", "x")}, ErrLayer},
		"a name out of the root, later":    {[]item{file("a/../../x", "x")}, ErrLayer},
		"an absolute name out of the root": {[]item{file("/../x", "x")}, ErrLayer},
		"only the way out":                 {[]item{dir("..")}, ErrLayer},
		"a whiteout of the way out":        {[]item{file("a/.wh...", "")}, ErrLayer},
		"a whiteout of the directory":      {[]item{file("a/.wh..", "")}, ErrLayer},
		"a whiteout of nothing":            {[]item{file(".wh.", "")}, ErrLayer},
		"a directory that is a whiteout":   {[]item{file("a/.wh.b/c", "")}, ErrLayer},
		"a long name":                      {[]item{file(strings.Repeat("n", 256), "")}, ErrLayer},
		"a long path":                      {[]item{file(strings.Repeat("n/", 2048)+"n", "")}, ErrLayer},
		"a link to nothing":                {[]item{hardlink("a", "none")}, ErrLayer},
		"a link without a target":          {[]item{hardlink("a", "")}, ErrLayer},
		"a link out of the root":           {[]item{hardlink("a", "../../etc/passwd")}, ErrLayer},
		"a link to a file of the host":     {[]item{hardlink("a", "/etc/passwd")}, ErrLayer},
		"a link to a directory":            {[]item{dir("d"), hardlink("a", "d")}, ErrLayer},
		"a link to the root":               {[]item{hardlink("a", "/")}, ErrLayer},
		"a link below a file":              {[]item{file("f", ""), hardlink("a", "f/x")}, ErrLayer},
		"a link through a loop":            {[]item{symlink("l", "l"), hardlink("a", "l/x")}, ErrLayer},
		"a symbolic link to nothing":       {[]item{symlink("a", "")}, ErrLayer},
		"a symbolic link too long":         {[]item{symlink("a", strings.Repeat("t", 4096))}, ErrLayer},
		"a name below a file":              {[]item{file("f", "x"), file("f/x", "x")}, ErrLayer},
		"a name below a loop":              {[]item{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}, ErrLayer},
		"a name that grows":                {[]item{symlink("a", "a/a"), file("a/x", "x")}, ErrLayer},
		"the root as a file":               {[]item{file(".", "x")}, ErrLayer},
		"the root as a link":               {[]item{file("a", "x"), hardlink("/", "a")}, ErrLayer},
		"an unknown type":                  {[]item{{Header: tar.Header{Typeflag: 'Q', Name: "q", Format: tar.FormatGNU}}}, ErrLayer},
		"no such device":                   {[]item{device(4096, 0)}, ErrLayer},
		"no such device either":            {[]item{device(0, 1<<20)}, ErrLayer},
		"nobody's file":                    {[]item{owner(1<<32-1, 0)}, ErrLayer},
		"a group beyond all":               {[]item{owner(0, 1<<33)}, ErrLayer},
		"a large attribute":                {[]item{attribute("user.a", strings.Repeat("v", 4090))}, ErrLayer},
		"a nameless attribute":             {[]item{attribute("user.", "v")}, ErrLayer},
		"an attribute with a long name":    {[]item{attribute("user."+strings.Repeat("n", 256), "v")}, ErrLayer},
		"no access control list":           {[]item{attribute("system.posix_acl_access", "v")}, ErrLayer},
		"too many links":                   {append([]item{file("a", "x")}, many(65000, func(i int) item { return hardlink(fmt.Sprint(i), "a") })...), ErrTooLarge},
		"deep directories": {many(10, func(i int) item {
			return symlink(strings.Repeat("d/", 1000*(i%2))+fmt.Sprint("l", i), strings.Repeat("d/", 1900)+"x")
		}), nil},
		"deeper directories": {[]item{
			symlink("a", strings.Repeat("d/", 1900)), file("a/x", ""), symlink("b", "a/"+strings.Repeat("d/", 1900)), file("b/x", ""),
		}, ErrLayer},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, c.items)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "layer: ") || len(err.Error()) > 1200) {
				t.Errorf("it says %q", err)
			}
		})
	}
}

// Archives that are broken below the level of entries.
func TestMalformedLayers(t *testing.T) {
	good := packed(t, file("a", "data"), file("b", strings.Repeat("b", 2000)))
	if _, err := Read(t.Context(), []Layer{layerOf(good)}, Limits{}, nil); err != nil {
		t.Fatal(err)
	}
	skipped := append([]byte{0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}, compressed(t, "zstd", good)...)
	huge := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x18 << 3, 0x01, 0, 0} // a window of 16 GiB
	flipped := compressed(t, "gzip", good)
	flipped[len(flipped)-6] ^= 1
	for name, c := range map[string]struct {
		data []byte
		err  error
	}{
		"nothing":               {nil, ErrLayer},
		"a text":                {[]byte(strings.Repeat("this is no archive\n", 100)), ErrLayer},
		"zeros":                 {make([]byte, 1024), nil},
		"no end":                {good[:len(good)-1024], nil},
		"cut in a header":       {good[:1200], ErrLayer},
		"cut in a file":         {good[:len(good)-3000], ErrLayer},
		"more behind its end":   {append(bytes.Clone(good), packed(t, hardlink("a", "/none"))...), nil},
		"a negative size":       {raw(t, file("a", ""), func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") }), ErrLayer},
		"a size beyond all":     {raw(t, file("a", ""), func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }), ErrTooLarge},
		"no name":               {raw(t, file("a", ""), func(b []byte) { b[0] = 0 }), ErrLayer},
		"a wrong checksum":      {append([]byte{'x'}, good[1:]...), ErrLayer},
		"gzip, twice":           {append(compressed(t, "gzip", good[:1000]), compressed(t, "gzip", good[1000:])...), nil},
		"gzip, and more":        {append(compressed(t, "gzip", good), "garbage"...), ErrLayer},
		"gzip, cut":             {compressed(t, "gzip", good)[:60], ErrLayer},
		"gzip, changed":         {flipped, ErrLayer},
		"zstd, twice":           {append(compressed(t, "zstd", good[:1000]), compressed(t, "zstd", good[1000:])...), nil},
		"zstd, a frame skipped": {skipped, nil},
		"zstd, cut":             {compressed(t, "zstd", good)[:60], ErrLayer},
		"zstd, and more":        {append(compressed(t, "zstd", good), "garbage"...), ErrLayer},
		"zstd, a huge window":   {huge, ErrTooLarge},
		"xz":                    {compressed(t, "xz", good), nil},
		"xz, twice, padded":     {append(append(compressed(t, "xz", good[:1000]), make([]byte, 8)...), compressed(t, "xz", good[1000:])...), nil},
		"xz, and more":          {append(compressed(t, "xz", good), "garbage"...), ErrLayer},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := Read(t.Context(), []Layer{layerOf(c.data)}, Limits{}, nil)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if len(c.data) > 1024 && err == nil && tree.Bytes() != 2004 {
				t.Errorf("it has %d bytes", tree.Bytes())
			}
		})
	}
}

// However a layer is compressed it is the same. Cut or changed anywhere it is none.
func TestCompression(t *testing.T) {
	data := packed(t, file("a", strings.Repeat("some text ", 50)), dir("d"), file("d/b", "x"))
	readAs := func(stored []byte, progress func(int64)) (*Tree, error) {
		l := layerOf(stored)
		l.DiffID = digest(data)
		return Read(t.Context(), []Layer{l}, Limits{}, progress)
	}
	for _, with := range []string{"none", "gzip", "zstd", "xz"} {
		stored, done := compressed(t, with, data), int64(0)
		tree, err := readAs(stored, func(n int64) { done = n })
		if err != nil || tree.Bytes() != 501 || done != int64(len(stored)) {
			t.Fatalf("%s: %v, %d of %d bytes", with, err, done, len(stored))
		}
		for at := 0; at < len(stored); at += 1 + len(stored)/300 {
			if _, err := readAs(stored[:at], nil); !errors.Is(err, ErrLayer) && !errors.Is(err, ErrDigest) {
				t.Fatalf("%s, cut at %d of %d: %v", with, at, len(stored), err)
			}
			changed := bytes.Clone(stored)
			changed[at] ^= 0x10
			_, err := readAs(changed, nil)
			if err != nil && !errors.Is(err, ErrLayer) && !errors.Is(err, ErrDigest) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%s, changed at %d of %d: %v", with, at, len(stored), err)
			}
		}
	}
}

// The digest of a layer is checked, at the first reading and at the second.
func TestDigest(t *testing.T) {
	good, bad := packed(t, file("a", "good"), file("etc/kept", "x")), packed(t, file("a", "evil"), file("etc/kept", "x"))
	for _, id := range []string{"sha256:00", "sha256:" + strings.Repeat("0", 64), "md5:" + strings.Repeat("0", 64), strings.Repeat("0", 64), digest(bad), strings.ToUpper(digest(good))} {
		l := layerOf(compressed(t, "gzip", good))
		l.DiffID = id
		if _, err := Read(t.Context(), []Layer{l}, Limits{}, nil); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: %v", id, err)
		}
	}
	for name, second := range map[string][]byte{
		"other contents": bad, "less": packed(t, file("a", "good")), "nothing": make([]byte, 1024), "another size": packed(t, file("a", "goods"), file("etc/kept", "x")),
	} {
		data := good
		tree, err := Read(t.Context(), []Layer{{Name: "changing", Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}}, Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		data = second
		path := t.TempDir() + "/ext4"
		if err := tree.WriteExt4(t.Context(), path, options(t, 16<<20)); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tree.ReadFile(t.Context(), "a"); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: reading a file: %v", name, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: left behind: %v", name, err)
		}
	}
}

// endless is an archive whose end nobody has seen.
type endless struct {
	head []byte
	more []byte
	n    int64
}

func (e *endless) Read(p []byte) (n int, err error) {
	if len(e.head) > 0 {
		n = copy(p, e.head)
		e.head = e.head[n:]
	} else {
		for n < len(p) {
			k := copy(p[n:], e.more[int(e.n+int64(n))%len(e.more):])
			n += k
		}
	}
	e.n += int64(n)
	return n, nil
}

// What a layer costs is bounded, however much it says there is.
func TestLimits(t *testing.T) {
	limits := Limits{Bytes: 10_000, Entries: 100}
	fileOf := func(name string, n int) item { return file(name, strings.Repeat("x", n)) }
	for name, c := range map[string]struct {
		layers [][]item
		err    error
	}{
		"as much as there may be":      {[][]item{{fileOf("a", 5000), fileOf("b", 5000)}}, nil},
		"too much":                     {[][]item{{fileOf("a", 5000), fileOf("b", 5001)}}, ErrTooLarge},
		"too much in two layers":       {[][]item{{fileOf("a", 5000)}, {fileOf("b", 5001)}}, ErrTooLarge},
		"replaced":                     {[][]item{{fileOf("a", 9000)}, {fileOf("a", 9000)}, {file(".wh.a", "")}, {fileOf("b", 9000)}}, nil},
		"replaced in one layer":        {[][]item{{fileOf("a", 9000), fileOf("a", 9000)}}, ErrTooLarge},
		"linked":                       {[][]item{{fileOf("a", 9000), hardlink("b", "a")}, {hardlink("c", "b")}}, nil},
		"many entries":                 {[][]item{make([]item, 100)}, nil},
		"too many entries":             {[][]item{make([]item, 60), make([]item, 41)}, ErrTooLarge},
		"directories that it makes up": {[][]item{{file(strings.Repeat("d/", 99)+"f", "")}}, nil},
		"too many of those":            {[][]item{{file(strings.Repeat("d/", 100)+"f", "")}}, ErrTooLarge},
	} {
		var list []Layer
		for _, items := range c.layers {
			for i := range items {
				if items[i].Name == "" {
					items[i] = dir(fmt.Sprint("d", i%50))
				}
			}
			list = append(list, layerOf(packed(t, items...)))
		}
		if _, err := Read(t.Context(), list, limits, nil); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	zeros := raw(t, file("zeros", ""), func(b []byte) { copy(b[124:136], fmt.Sprintf("%011o", 6<<30)) })[:512]
	small := raw(t, file("small", ""), func([]byte) {})[:512]
	long := packed(t, file(strings.Repeat("long", 200), ""))[:1536]
	for name, c := range map[string]struct {
		head, more []byte
		limits     Limits
		most       int64
	}{
		"a file": {zeros, make([]byte, 4096), Limits{Bytes: 1 << 30}, 2 << 20},
		"files":  {nil, small, Limits{Entries: 10_000}, 10_000*512 + 2<<20},
		"sizes of links": {
			raw(t, symlink("l", "x"), func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x0f\xff\xff\xff\xff\xff\xff\xff") })[:512],
			long[:1024], Limits{}, perLayer + 2<<20,
		},
		"long names":         {nil, long, Limits{Entries: 100}, perLayer + 4<<20},
		"headers of names":   {nil, long[:1024], Limits{}, perLayer + 2<<20},
		"behind the end":     {make([]byte, 1024), make([]byte, 4096), Limits{}, perLayer + 2<<20},
		"garbage at the end": {make([]byte, 1024), []byte("garbage"), Limits{}, perLayer + 2<<20},
	} {
		e := &endless{head: c.head, more: c.more}
		_, err := Read(t.Context(), []Layer{{Name: "endless", Open: func() (io.ReadCloser, error) { return io.NopCloser(e), nil }}}, c.limits, nil)
		if !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrLayer) || e.n > c.most {
			t.Errorf("%s: %v, after %d bytes", name, err, e.n)
		}
	}
}

// Who reads is told why a layer could not be read, and may give up.
func TestBreakingOff(t *testing.T) {
	data := packed(t, file("a", strings.Repeat("x", 4<<20)))
	broken := errors.New("broken")
	for _, cut := range []int{0, 100, 512, 1 << 20, len(data) - 100} {
		l := Layer{Name: "broken", Open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(data[:cut]), errReader{broken})), nil
		}}
		if _, err := Read(t.Context(), []Layer{l}, Limits{}, nil); !errors.Is(err, broken) || errors.Is(err, ErrLayer) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	l := Layer{Name: "none", Open: func() (io.ReadCloser, error) { return nil, broken }}
	if _, err := Read(t.Context(), []Layer{l}, Limits{}, nil); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ended, []Layer{layerOf(data)}, Limits{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	middle, cancel := context.WithCancel(t.Context())
	if _, err := Read(middle, []Layer{layerOf(data)}, Limits{}, func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("in the middle: %v", err)
	}
	tree, err := Read(t.Context(), []Layer{layerOf(data)}, Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	middle, cancel = context.WithCancel(t.Context())
	opts := options(t, 16<<20)
	opts.Progress = func(int64) { cancel() }
	if err := tree.WriteExt4(middle, dir+"/ext4", opts); !errors.Is(err, context.Canceled) {
		t.Errorf("writing: %v", err)
	}
	if err := tree.WriteExt4(ended, dir+"/ext4", opts); !errors.Is(err, context.Canceled) {
		t.Errorf("writing: %v", err)
	}
	if err := tree.WriteExt4(t.Context(), dir+"/ext4", options(t, 4<<20)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too small: %v", err)
	}
	many := make([]item, 5000)
	for i := range many {
		many[i] = file(fmt.Sprint(i), "")
	}
	for size, want := range map[int64]error{16 << 20: ErrTooLarge, 64 << 20: nil} {
		tree, err := read(t, many)
		must(t, err)
		if err := tree.WriteExt4(t.Context(), dir+"/ext4", options(t, size)); !errors.Is(err, want) {
			t.Errorf("%d files in %d bytes: %v", len(many), size, err)
		}
	}
	must(t, os.Remove(dir+"/ext4"))
	opts = options(t, 16<<20)
	opts.Mke2fs = dir + "/mke2fs"
	if err := tree.WriteExt4(t.Context(), dir+"/ext4", opts); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no mke2fs: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	must(t, os.WriteFile(dir+"/ext4", []byte("somebody's"), 0o600))
	if err := tree.WriteExt4(t.Context(), dir+"/ext4", options(t, 16<<20)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("there is a file: %v", err)
	}
	if data, err := os.ReadFile(dir + "/ext4"); err != nil || string(data) != "somebody's" {
		t.Errorf("it became %q, %v", data, err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// A disk that is full is said to be, and is as full as before.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a small disk")
	}
	small := t.TempDir()
	must(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"))
	defer func() { must(t, unix.Unmount(small, 0)) }()
	for size, want := range map[int]error{1 << 20: nil, 20 << 20: syscall.ENOSPC} {
		tree, err := read(t, []item{file("a", strings.Repeat("x", size))})
		must(t, err)
		if err := tree.WriteExt4(t.Context(), small+"/ext4", options(t, 64<<20)); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := os.Remove(small + "/ext4"); (err == nil) != (want == nil) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// FuzzRead reads anything as two layers, and writes what comes of it.
func FuzzRead(f *testing.F) {
	lower := packed(f, dir("d"), file("d/x", "x"), symlink("l", "d"), symlink("up", "../.."), file("f", "f"), hardlink("h", "f"))
	seeds := [][]item{
		{file("l/y", "y"), file("d/.wh..wh..opq", ""), file(".wh.f", ""), hardlink("i", "h")},
		{file("../x", "x"), hardlink("a", "/etc/passwd")},
		{symlink("l", "l/l"), file("l/x", "x")},
		{file("up/x", "x"), dir("up"), file("d", "x"), dir("d/x")},
	}
	for _, items := range seeds {
		data := packed(f, items...)
		for _, with := range []string{"none", "gzip", "zstd", "xz"} {
			f.Add(compressed(f, with, data))
		}
	}
	f.Add(raw(f, file("a", ""), func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := Read(t.Context(), []Layer{layerOf(lower), layerOf(data)}, Limits{Bytes: 1 << 20, Entries: 200}, nil)
		if err != nil {
			if !errors.Is(err, ErrLayer) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("got %v", err)
			}
			return
		}
		consistent(t, tree)
		for name := range nodes(tree) {
			if strings.Contains(name, "..") && strings.HasPrefix(name, "../") {
				t.Fatalf("%q is out of the root", name)
			}
		}
	})
}
