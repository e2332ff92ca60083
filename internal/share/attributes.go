package share

import (
	"time"

	"golang.org/x/sys/unix"
)

// validity is how long the guest's kernel may take for granted what it was told of a file, in
// seconds: so long it may be until a change on the host is seen.
const validity = 1

const (
	// permissions are the bits of a mode that a guest may set, on a directory one more: no file of
	// the host gets to run as somebody else.
	permissions = 0o1777
	setIDs      = unix.S_ISUID | unix.S_ISGID
)

// attributes adds what there is to say of a file.
func (s *session) attributes(r *reply, stat *unix.Stat_t) {
	r.u64(s.number(stat))
	r.u64(uint64(stat.Size))
	r.u64(uint64(stat.Blocks))
	for _, t := range []unix.Timespec{stat.Atim, stat.Mtim, stat.Ctim} {
		r.u64(uint64(t.Sec))
	}
	for _, t := range []unix.Timespec{stat.Atim, stat.Mtim, stat.Ctim} {
		r.u32(uint32(t.Nsec))
	}
	r.u32(stat.Mode)
	r.u32(uint32(stat.Nlink))
	r.u32(s.owner.guestUID(stat.Uid))
	r.u32(s.owner.guestGID(stat.Gid))
	r.u32(uint32(stat.Rdev))
	r.u32(uint32(stat.Blksize))
	r.zeros(4)
}

// number is the inode's number in the guest, which has one filesystem where the host may have several.
func (s *session) number(stat *unix.Stat_t) uint64 {
	const filesystemShift = 40
	return stat.Ino ^ (stat.Dev^s.nodes.device)<<filesystemShift
}

// entry adds what the guest's kernel gets to know of a file by a name.
func (s *session) entry(r *reply, n *node, stat *unix.Stat_t) {
	r.u64(n.id)
	r.u64(0) // numbers of nodes are not used twice
	r.u64(validity)
	r.u64(validity)
	r.zeros(8) // nanoseconds of these
	s.attributes(r, stat)
}

func (s *session) attributesReply(r *reply, fd int) error {
	var stat unix.Stat_t
	if err := again(func() error { return unix.Fstat(fd, &stat) }); err != nil {
		return err
	}
	r.u64(validity)
	r.zeros(8)
	s.attributes(r, &stat)
	return nil
}

func (s *session) getattr(h header, a *arguments, r *reply) error {
	flags := a.u32()
	a.skip(4)
	id := a.u64()
	if err := a.err(); err != nil {
		return err
	}
	if flags&getattrHandle != 0 {
		open, err := s.handles.acquire(id, h.node)
		if err != nil {
			return err
		}
		defer s.handles.release(open, s.nodes)
		return s.attributesReply(r, open.fd)
	}
	n, err := s.nodes.acquire(h.node)
	if err != nil {
		return err
	}
	defer s.nodes.release(n)
	return s.attributesReply(r, n.fd)
}

// changes are what a SETATTR asks for.
type changes struct {
	what     uint32
	handle   uint64
	size     uint64
	times    [2]unix.Timespec // atime, mtime
	mode     uint32
	uid, gid uint32
}

func readChanges(a *arguments) (changes, error) {
	var c changes
	c.what = a.u32()
	a.skip(4)
	c.handle, c.size = a.u64(), a.u64()
	a.skip(8)
	c.times[0].Sec, c.times[1].Sec = int64(a.u64()), int64(a.u64())
	a.skip(8)
	c.times[0].Nsec, c.times[1].Nsec = int64(a.u32()), int64(a.u32())
	a.skip(4)
	c.mode = a.u32()
	a.skip(4)
	c.uid, c.gid = a.u32(), a.u32()
	for i, flags := range [2][2]uint32{{setAtime, setAtimeNow}, {setMtime, setMtimeNow}} {
		switch {
		case c.what&flags[0] == 0:
			c.times[i] = unix.Timespec{Nsec: unix.UTIME_OMIT}
		case c.what&flags[1] != 0:
			c.times[i] = unix.Timespec{Nsec: unix.UTIME_NOW}
		case c.times[i].Nsec < 0 || c.times[i].Nsec >= int64(time.Second):
			return c, unix.EINVAL
		}
	}
	return c, a.err()
}

func (s *session) setattr(h header, a *arguments, r *reply) error {
	c, err := readChanges(a)
	if err != nil {
		return err
	}
	n, err := s.nodes.acquire(h.node)
	if err != nil {
		return err
	}
	defer s.nodes.release(n)
	if c.what&setSize != 0 {
		if err := s.truncate(n, c); err != nil {
			return err
		}
	}
	if c.what&(setUID|setGID) != 0 {
		if err := s.chown(n, c); err != nil {
			return err
		}
	}
	if c.what&setMode != 0 {
		if err := chmod(n.fd, n.kind, c.mode); err != nil {
			return err
		}
	}
	if c.what&(setAtime|setMtime) != 0 {
		// The path leads to the file itself, even if that is a link.
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, self(n.fd), c.times[:], 0); err != nil {
			return err
		}
	}
	return s.attributesReply(r, n.fd)
}

// truncate changes the size of a file, by a handle if there is one: that may be for a file which
// may not be opened any more.
func (s *session) truncate(n *node, c changes) error {
	if n.kind != unix.S_IFREG {
		return unix.EINVAL
	}
	if err := dropSetID(n.fd); err != nil {
		return err
	}
	if c.what&setHandle == 0 {
		return again(func() error { return unix.Truncate(self(n.fd), int64(c.size)) })
	}
	open, err := s.handles.acquire(c.handle, n.id)
	if err != nil {
		return err
	}
	defer s.handles.release(open, s.nodes)
	return again(func() error { return unix.Ftruncate(open.fd, int64(c.size)) })
}

// chown gives a file to others. To give it to whom it belongs is no change.
func (s *session) chown(n *node, c changes) error {
	var stat unix.Stat_t
	if err := unix.Fstat(n.fd, &stat); err != nil {
		return err
	}
	uid, gid := -1, -1
	if c.what&setUID != 0 && c.uid != s.owner.guestUID(stat.Uid) {
		uid = int(s.owner.hostUID(c.uid))
	}
	if c.what&setGID != 0 && c.gid != s.owner.guestGID(stat.Gid) {
		gid = int(s.owner.hostGID(c.gid))
	}
	if uid == -1 && gid == -1 {
		return nil
	}
	return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
}

// chmod sets the permissions of a file of a kind.
func chmod(fd int, kind, mode uint32) error {
	allowed := uint32(permissions)
	switch kind {
	case unix.S_IFLNK:
		return unix.EOPNOTSUPP
	case unix.S_IFDIR:
		allowed |= unix.S_ISGID // which says whose group files in it have
	}
	return again(func() error { return unix.Chmod(self(fd), mode&allowed) })
}

// dropSetID keeps what a guest writes from running as somebody else on the host.
func dropSetID(fd int) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&setIDs == 0 {
		return err
	}
	return again(func() error { return unix.Chmod(self(fd), stat.Mode&permissions) })
}

// access tells nothing that the guest's kernel does not know from the mode, which it judges by.
func (s *session) access(h header, a *arguments, _ *reply) error {
	mask := a.u32()
	if err := a.err(); err != nil {
		return err
	}
	n, err := s.nodes.acquire(h.node)
	if err != nil {
		return err
	}
	defer s.nodes.release(n)
	if mask&unix.W_OK != 0 && s.folder.readOnly {
		return unix.EROFS
	}
	return nil
}

func (s *session) statfs(h header, _ *arguments, r *reply) error {
	n, err := s.nodes.acquire(h.node)
	if err != nil {
		return err
	}
	defer s.nodes.release(n)
	var fs unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(n.fd, &fs) }); err != nil {
		return err
	}
	for _, v := range []uint64{fs.Blocks, fs.Bfree, fs.Bavail, fs.Files, fs.Ffree} {
		r.u64(v)
	}
	for _, v := range []int64{fs.Bsize, fs.Namelen, fs.Frsize} {
		r.u32(uint32(v))
	}
	r.zeros(4 + 6*4)
	return nil
}
