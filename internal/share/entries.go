package share

import (
	"golang.org/x/sys/unix"
)

// maxLink is the longest target of a symbolic link, in bytes.
const maxLink = unix.PathMax - 1

// inDirectory lets do work on an entry of a directory, whose name comes next.
func (s *session) inDirectory(id uint64, a *arguments, do func(dir *node, name string) error) error {
	name, err := a.name()
	if err != nil {
		return err
	}
	dir, err := s.nodes.acquire(id)
	if err != nil {
		return err
	}
	defer s.nodes.release(dir)
	if dir.kind != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return do(dir, name)
}

func (s *session) lookup(h header, a *arguments, r *reply) error {
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		fd, stat, err := openEntry(dir.fd, name)
		if err != nil {
			return err
		}
		return s.tell(r, fd, stat, dir, name)
	})
}

// tell tells the guest's kernel of a file, which it owns.
func (s *session) tell(r *reply, fd int, stat *unix.Stat_t, dir *node, name string) error {
	n, err := s.nodes.add(fd, stat, dir, name)
	if err != nil {
		return err
	}
	s.entry(r, n, stat)
	s.nodes.release(n)
	return nil
}

// made tells of an entry that was just made, of that kind, once it has the mode and the owner that
// the guest wants.
func (s *session) made(r *reply, h header, dir *node, name string, kind, mode uint32) error {
	fd, stat, err := openEntry(dir.fd, name)
	if err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != kind {
		_ = unix.Close(fd)
		return unix.ESTALE // somebody on the host has put another into its place
	}
	if stat, err = s.settle(fd, stat, h, dir, mode); err != nil {
		_ = unix.Close(fd)
		return err
	}
	return s.tell(r, fd, stat, dir, name)
}

// settle gives a new file the owner and the mode that it is to have: root's guest has users of its
// own, and the process that runs the VM has a mask of its own.
func (s *session) settle(fd int, stat *unix.Stat_t, h header, dir *node, mode uint32) (*unix.Stat_t, error) {
	var above, now unix.Stat_t
	if err := unix.Fstat(dir.fd, &above); err != nil {
		return nil, err
	}
	changed := false
	// It is root's unless somebody else has put one into its place, or the filesystem takes root
	// for another.
	if s.owner.root() && stat.Uid == s.owner.uid {
		gid := h.gid
		if above.Mode&unix.S_ISGID != 0 {
			gid = stat.Gid // it is the directory's
		}
		if stat.Uid != h.uid || stat.Gid != gid {
			if err := unix.Fchownat(fd, "", int(h.uid), int(gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return nil, err
			}
			changed = true
		}
	}
	kind := stat.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		mode |= stat.Mode & unix.S_ISGID
	}
	if kind != unix.S_IFLNK && stat.Mode&^unix.S_IFMT != mode&(permissions|unix.S_ISGID) {
		if err := chmod(fd, kind, mode); err != nil {
			return nil, err
		}
		changed = true
	}
	if !changed {
		return stat, nil
	}
	return &now, unix.Fstat(fd, &now)
}

func (s *session) symlink(h header, a *arguments, r *reply) error {
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		target := a.text()
		switch {
		case a.err() != nil || target == "":
			return unix.EINVAL
		case len(target) > maxLink:
			return unix.ENAMETOOLONG
		}
		if err := again(func() error { return unix.Symlinkat(target, dir.fd, name) }); err != nil {
			return err
		}
		return s.made(r, h, dir, name, unix.S_IFLNK, 0)
	})
}

func (s *session) readlink(h header, _ *arguments, r *reply) error {
	n, err := s.nodes.acquire(h.node)
	if err != nil {
		return err
	}
	defer s.nodes.release(n)
	if n.kind != unix.S_IFLNK {
		return unix.EINVAL
	}
	size, err := unix.Readlinkat(n.fd, "", r.room(maxLink))
	if err != nil {
		return err
	}
	r.keep(size)
	return nil
}

func (s *session) mkdir(h header, a *arguments, r *reply) error {
	mode := a.u32()
	a.skip(4)
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		if err := again(func() error { return unix.Mkdirat(dir.fd, name, mode&permissions) }); err != nil {
			return err
		}
		return s.made(r, h, dir, name, unix.S_IFDIR, mode)
	})
}

// mknod makes regular files, and those by which programs of a guest speak to each other: pipes and
// sockets. A device would be one of the host.
func (s *session) mknod(h header, a *arguments, r *reply) error {
	mode := a.u32()
	a.skip(12)
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		kind := mode & unix.S_IFMT
		switch kind {
		case 0:
			kind = unix.S_IFREG
		case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
		default:
			return unix.EPERM
		}
		if err := again(func() error { return unix.Mknodat(dir.fd, name, kind|mode&permissions, 0) }); err != nil {
			return err
		}
		return s.made(r, h, dir, name, kind, mode)
	})
}

func (s *session) link(h header, a *arguments, r *reply) error {
	id := a.u64()
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		n, err := s.nodes.acquire(id)
		if err != nil {
			return err
		}
		defer s.nodes.release(n)
		// The path leads to the file itself, even if that is a link.
		err = again(func() error { return unix.Linkat(unix.AT_FDCWD, self(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW) })
		if err != nil {
			return err
		}
		fd, stat, err := openEntry(dir.fd, name)
		if err != nil {
			return err
		}
		return s.tell(r, fd, stat, dir, name)
	})
}

func (s *session) unlink(h header, a *arguments, _ *reply) error {
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		return again(func() error { return unix.Unlinkat(dir.fd, name, 0) })
	})
}

func (s *session) rmdir(h header, a *arguments, _ *reply) error {
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		return again(func() error { return unix.Unlinkat(dir.fd, name, unix.AT_REMOVEDIR) })
	})
}

func (s *session) rename(h header, a *arguments, _ *reply) error {
	return s.renameTo(h.node, a.u64(), 0, a)
}

func (s *session) rename2(h header, a *arguments, _ *reply) error {
	to, flags := a.u64(), a.u32()
	a.skip(4)
	if flags != 0 && flags != unix.RENAME_NOREPLACE && flags != unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	return s.renameTo(h.node, to, flags, a)
}

func (s *session) renameTo(from, to uint64, flags uint32, a *arguments) error {
	return s.inDirectory(from, a, func(dir *node, name string) error {
		return s.inDirectory(to, a, func(newDir *node, newName string) error {
			err := again(func() error { return unix.Renameat2(dir.fd, name, newDir.fd, newName, uint(flags)) })
			if err != nil {
				return err
			}
			s.follow(newDir, newName)
			if flags == unix.RENAME_EXCHANGE {
				s.follow(dir, name)
			}
			return nil
		})
	})
}

// follow notes where a file is now.
func (s *session) follow(dir *node, name string) {
	var stat unix.Stat_t
	if err := unix.Fstatat(dir.fd, name, &stat, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		s.nodes.moved(&stat, dir, name)
	}
}
