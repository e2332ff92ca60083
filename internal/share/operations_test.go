package share

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestInit(t *testing.T) {
	k := connect(t, newWorld(t).folder, false)
	k.fails(unix.ENOSYS, opGetattr, rootNode, u32s(0, 0), u64s(0)) // nothing comes before it
	k.fails(unix.EPROTO, opInit, 0, u32s(8, 0, 0, 0))
	got := k.must(opInit, 0, u32s(7, 37, 1<<17, 0xffffffff))
	if len(got) != initOutSize || !slices.Equal(got[:16], u32s(7, 31, 1<<17, wantedFlags)) {
		t.Errorf("got %x", got)
	}
	if size := binary.LittleEndian.Uint32(got[20:]); size != maxData {
		t.Errorf("the most that is written is %d bytes", size)
	}
	k.fails(unix.EPROTO, opInit, 0, u32s(7, 37, 0, 0)) // once
	k.attributes(rootNode)
}

func TestOldKernel(t *testing.T) {
	connect(t, newWorld(t).folder, false).fails(unix.EPROTO, opInit, 0, u32s(7, 27, 0, 0))
}

func TestFiles(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.folder, "file")
	put(t, path, "hello")
	k := mount(t, w.folder, false)
	file := k.lookup(rootNode, "file")
	if file.mode != unix.S_IFREG|0o644 || file.size != 5 || file.nlink != 1 || file.uid != 0 {
		t.Errorf("got %+v", file)
	}
	if got := k.contents(file.node); got != "hello" {
		t.Errorf("read %q", got)
	}
	h := k.open(file.node, unix.O_RDWR)
	k.must(opWrite, file.node, writeBody(h, 5, 0, " world"))
	k.must(opWrite, file.node, writeBody(h, 0, unix.O_APPEND, "!")) // wherever it says
	if got := get(t, path); got != "hello world!" {
		t.Errorf("wrote %q", got)
	}
	k.must(opFsync, file.node, u64s(h), u32s(0, 0))
	k.must(opFallocate, file.node, u64s(h, 0, 4096), u32s(0, 0))
	k.fails(unix.EOPNOTSUPP, opFallocate, file.node, u64s(h, 0, 4096), u32s(unix.FALLOC_FL_COLLAPSE_RANGE, 0))
	if got := binary.LittleEndian.Uint64(k.must(opLseek, file.node, u64s(h, 0), u32s(unix.SEEK_HOLE, 0))); got != 4096 {
		t.Errorf("a hole at %d", got)
	}
	k.fails(unix.EINVAL, opLseek, file.node, u64s(h, 0), u32s(unix.SEEK_SET, 0))
	got := attributesIn(k.must(opSetattr, file.node, setattrBody(setSize|setMode|setAtime|setMtime, 0, 3, 0o600, 0, 0))[16:])
	if got.size != 3 || got.mode != unix.S_IFREG|0o600 || got.mtime != 8 || got.mtimeN != 80 {
		t.Errorf("after it was changed: %+v", got)
	}
	k.must(opSetattr, file.node, setattrBody(setMtime|setMtimeNow, 0, 0, 0, 0, 0))
	if got := k.attributes(file.node); time.Since(time.Unix(int64(got.mtime), 0)) > time.Minute {
		t.Errorf("touched: %+v", got)
	}
	k.must(opSetattr, file.node, setattrBody(setSize|setHandle, h, 1, 0, 0, 0))
	k.must(opRelease, file.node, u64s(h), u32s(0, 0), u64s(0))
	k.must(opOpen, file.node, u32s(unix.O_WRONLY|unix.O_TRUNC, 0))
	if got := get(t, path); got != "" {
		t.Errorf("after it was truncated: %q", got)
	}
	if fs := k.must(opStatfs, rootNode); len(fs) != 80 || binary.LittleEndian.Uint64(fs) == 0 {
		t.Errorf("statfs: %x", fs)
	}
	k.must(opAccess, file.node, u32s(unix.W_OK, 0))
	k.must(opDestroy, 0)
}

// The guest's kernel keeps what it has cached of a file only if that is the file's still.
func TestKeepCache(t *testing.T) {
	w := newWorld(t)
	put(t, filepath.Join(w.folder, "file"), "1")
	k := mount(t, w.folder, false)
	file := k.lookup(rootNode, "file")
	for i, want := range []uint32{0, openKeepCache, 0, openKeepCache} {
		if i == 2 {
			put(t, filepath.Join(w.folder, "file"), "22")
		}
		if got := binary.LittleEndian.Uint32(k.must(opOpen, file.node, u32s(0, 0))[8:]); got != want {
			t.Errorf("opening %d: flags %d, want %d", i, got, want)
		}
	}
}

func TestCreate(t *testing.T) {
	w := newWorld(t)
	k := mount(t, w.folder, false)
	made, h := k.create(rootNode, "new", 0o4672)
	if made.mode != unix.S_IFREG|0o672 { // the process's own mask does not count, nor does set-user-ID
		t.Errorf("mode %o", made.mode)
	}
	k.must(opWrite, made.node, writeBody(h, 0, 0, "x"))
	// Somebody else was faster.
	put(t, filepath.Join(w.folder, "there"), "there")
	there, h := k.create(rootNode, "there", 0o600)
	if got := k.must(opRead, there.node, readBody(h, 0, 10)); string(got) != "there" {
		t.Errorf("read %q", got)
	}
	k.fails(unix.EEXIST, opCreate, rootNode, u32s(unix.O_RDWR|unix.O_EXCL, 0o600, 0, 0), names("there"))
	if err := os.Symlink("there", filepath.Join(w.folder, "link")); err != nil {
		t.Fatal(err)
	}
	k.fails(unix.EEXIST, opCreate, rootNode, u32s(unix.O_RDWR, 0o600, 0, 0), names("link"))
	// What may not be opened any more can be truncated by who has it open.
	made, h = k.create(rootNode, "readonly", 0o444)
	k.must(opWrite, made.node, writeBody(h, 0, 0, "abc"))
	k.must(opSetattr, made.node, setattrBody(setSize|setHandle, h, 1, 0, 0, 0))
}

func TestTree(t *testing.T) {
	w := newWorld(t)
	k := mount(t, w.folder, false)
	dir := entryIn(k.must(opMkdir, rootNode, u32s(0o2775, 0), names("dir")))
	if dir.mode != unix.S_IFDIR|0o2775 {
		t.Errorf("directory: mode %o", dir.mode)
	}
	link := entryIn(k.must(opSymlink, dir.node, names("link", "/etc/passwd")))
	if got := k.must(opReadlink, link.node); string(got) != "/etc/passwd" || link.mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("link to %q, %+v", got, link)
	}
	k.must(opSetattr, link.node, setattrBody(setMtime, 0, 0, 0, 0, 0))
	if got := k.attributes(link.node); got.mtime != 8 {
		t.Errorf("time of a link: %+v", got)
	}
	k.fails(unix.EOPNOTSUPP, opSetattr, link.node, setattrBody(setMode, 0, 0, 0o600, 0, 0))
	k.must(opLink, rootNode, u64s(link.node), names("link2"))
	if to, err := os.Readlink(filepath.Join(w.folder, "link2")); to != "/etc/passwd" {
		t.Errorf("link to a link: %q, %v", to, err)
	}
	fifo := entryIn(k.must(opMknod, dir.node, u32s(unix.S_IFIFO|0o622, 0, 0, 0), names("fifo")))
	if fifo.mode != unix.S_IFIFO|0o622 {
		t.Errorf("pipe: mode %o", fifo.mode)
	}
	k.fails(unix.EACCES, opOpen, fifo.node, u32s(0, 0))
	file := entryIn(k.must(opMknod, dir.node, u32s(unix.S_IFREG|0o640, 0, 0, 0), names("file")))
	again := entryIn(k.must(opLink, rootNode, u64s(file.node), names("file2")))
	if again.node != file.node || again.nlink != 2 {
		t.Errorf("linked %+v to %+v", file, again)
	}
	k.must(opRename, dir.node, u64s(rootNode), names("file", "moved"))
	k.fails(unix.EEXIST, opRename2, rootNode, u64s(rootNode), u32s(unix.RENAME_NOREPLACE, 0), names("moved", "file2"))
	k.must(opRename2, rootNode, u64s(dir.node), u32s(unix.RENAME_EXCHANGE, 0), names("moved", "link"))
	if got := k.lookup(dir.node, "link"); got.node != file.node {
		t.Errorf("exchanged: %+v", got)
	}
	k.fails(unix.EINVAL, opRename2, rootNode, u64s(rootNode), u32s(unix.RENAME_WHITEOUT, 0), names("moved", "x"))
	k.fails(unix.ENOTEMPTY, opRmdir, rootNode, names("dir"))
	for _, name := range []string{"fifo", "link"} {
		k.must(opUnlink, dir.node, names(name))
	}
	k.must(opRmdir, rootNode, names("dir"))
	k.fails(unix.ENOENT, opLookup, rootNode, names("dir"))
	k.fails(unix.ENOSYS, 22, rootNode, u32s(0, 0), names("user.x")) // GETXATTR
}

// listed are the names in what a READDIR was answered with, and where the next one is.
func listed(b []byte, extra int) (all []string, next uint64) {
	for len(b) > 0 {
		e := b[extra:]
		size := int(binary.LittleEndian.Uint32(e[16:]))
		next = binary.LittleEndian.Uint64(e[8:])
		all = append(all, string(e[direntSize:direntSize+size]))
		b = e[direntLength(string(make([]byte, size))):]
	}
	return all, next
}

func TestDirectories(t *testing.T) {
	w := newWorld(t)
	want := []string{".", ".."}
	for i := range 300 {
		name := fmt.Sprintf("%d%s", i, strings.Repeat("x", i%200))
		put(t, filepath.Join(w.folder, name), "")
		want = append(want, name)
	}
	slices.Sort(want)
	for op, extra := range map[opcode]int{opReaddir: 0, opReaddirplus: entrySize} {
		k := mount(t, w.folder, false)
		h := binary.LittleEndian.Uint64(k.must(opOpendir, rootNode, u32s(0, 0)))
		var got []string
		var offsets []uint64
		for at := uint64(0); ; {
			names, next := listed(k.must(op, rootNode, readBody(h, at, 4096)), extra)
			if len(names) == 0 {
				break
			}
			got, offsets, at = append(got, names...), append(offsets, at), next
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("operation %d: %d names of %d", op, len(got), len(want))
		}
		// Again, from the middle.
		middle, _ := listed(k.must(op, rootNode, readBody(h, offsets[len(offsets)/2], 4096)), extra)
		if len(middle) == 0 {
			t.Error("nothing in the middle")
		}
		k.must(opFsyncdir, rootNode, u64s(h), u32s(0, 0))
		k.must(opReleasedir, rootNode, u64s(h), u32s(0, 0), u64s(0))
		k.fails(unix.EBADF, op, rootNode, readBody(h, 0, 4096))
	}
}

// Whom files belong to is told as the guest's users are.
func TestOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root can give files to others: the rest is tried by the tests with VMs")
		return
	}
	w := newWorld(t)
	for name, id := range map[string]int{"roots": 0, "mine": 1000, "others": 1001} {
		path := filepath.Join(w.folder, name)
		put(t, path, "")
		if err := os.Chown(path, id, id); err != nil {
			t.Fatal(err)
		}
	}
	k := mount(t, w.folder, false, func(f *Folder) { f.owner = owner{1000, 1000} })
	for name, want := range map[string]uint32{"roots": nobody, "mine": 0, "others": 1001} {
		got := k.lookup(rootNode, name)
		if got.uid != want || got.gid != want {
			t.Errorf("%s: %+v, want %d", name, got, want)
		}
	}
	mine := k.lookup(rootNode, "mine")
	k.must(opSetattr, mine.node, setattrBody(setUID|setGID, 0, 0, 0, 0, 0)) // it is
	k.must(opSetattr, mine.node, setattrBody(setUID, 0, 0, 0, 1001, 0))     // this process is root
	if got := k.attributes(mine.node); got.uid != 1001 || got.gid != 0 {
		t.Errorf("given away: %+v", got)
	}
	// Root's guest has users whose files are theirs.
	k = mount(t, w.folder, false)
	k.uid, k.gid = 1005, 1006
	if made, _ := k.create(rootNode, "theirs", 0o600); made.uid != 1005 || made.gid != 1006 {
		t.Errorf("made by a user: %+v", made)
	}
	if made := entryIn(k.must(opMkdir, rootNode, u32s(0o700, 0), names("dir"))); made.uid != 1005 || made.gid != 1006 {
		t.Errorf("made by a user: %+v", made)
	}
}
