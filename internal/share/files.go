package share

import (
	"golang.org/x/sys/unix"
)

// passedOn are the flags of an open that mean the same on the host. O_APPEND is each write's own,
// and O_DIRECT is between the guest and its cache.
const passedOn = unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC

// alsoOpen are the flags that go with every open: nothing is waited for.
const alsoOpen = unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY

// forWriting tells whether a file that is opened so is to be changed.
func forWriting(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

func (s *session) open(h header, a *arguments, r *reply) error {
	flags := a.u32()
	if err := a.err(); err != nil {
		return err
	}
	n, err := s.nodes.acquire(h.node)
	if err != nil {
		return err
	}
	return s.openNode(n, flags, r)
}

// openNode opens a file, of whose node it takes over a use.
func (s *session) openNode(n *node, flags uint32, r *reply) error {
	fd, keep, err := s.openFile(n, flags)
	if err != nil {
		s.nodes.release(n)
		return err
	}
	return s.opened(n, fd, keep, r)
}

func (s *session) openFile(n *node, flags uint32) (fd int, keep bool, err error) {
	if n.kind != unix.S_IFREG {
		return -1, false, unix.EACCES // devices and pipes are the guest's kernel's own
	}
	if forWriting(flags) {
		if s.folder.readOnly {
			return -1, false, unix.EROFS
		}
		if err := dropSetID(n.fd); err != nil {
			return -1, false, err
		}
	}
	err = again(func() error {
		fd, err = unix.Open(self(n.fd), int(flags&passedOn)|alsoOpen, 0)
		return err
	})
	if err != nil {
		return -1, false, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		_ = unix.Close(fd)
		return -1, false, err
	}
	return fd, s.nodes.openedAs(n, versionOf(&stat)), nil
}

// opened makes a handle of a file, both of which it takes over.
func (s *session) opened(n *node, fd int, keep bool, r *reply) error {
	open, err := s.handles.add(n, fd, nil)
	if err != nil {
		_ = unix.Close(fd)
		s.nodes.release(n)
		return err
	}
	r.u64(open.id)
	if keep {
		r.u32(openKeepCache)
	} else {
		r.u32(0)
	}
	r.zeros(4)
	return nil
}

func (s *session) create(h header, a *arguments, r *reply) error {
	flags, mode := a.u32(), a.u32()
	a.skip(8)
	return s.inDirectory(h.node, a, func(dir *node, name string) error {
		fd, err := openBeneath(dir.fd, name, uint64(flags&passedOn)|alsoOpen|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, uint64(mode&permissions))
		if err == unix.EEXIST && flags&unix.O_EXCL == 0 {
			return s.createdBefore(flags, dir, name, r)
		}
		if err != nil {
			return err
		}
		n, err := s.created(fd, h, dir, name, mode, r)
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		if err := s.opened(n, fd, false, r); err != nil {
			s.nodes.forget(n.id, 1) // it is not told of it
			return err
		}
		return nil
	})
}

// created tells of a file that was just made, and returns its node, which is in use.
func (s *session) created(fd int, h header, dir *node, name string, mode uint32, r *reply) (*node, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, err
	}
	now, err := s.settle(fd, &stat, h, dir, mode)
	if err != nil {
		return nil, err
	}
	path, err := unix.Open(self(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	n, err := s.nodes.add(path, now, dir, name)
	if err != nil {
		return nil, err
	}
	s.entry(r, n, now)
	return n, nil
}

// createdBefore opens a file that somebody else made since the guest's kernel looked.
func (s *session) createdBefore(flags uint32, dir *node, name string, r *reply) error {
	path, stat, err := openEntry(dir.fd, name)
	if err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(path)
		return unix.EEXIST
	}
	n, err := s.nodes.add(path, stat, dir, name)
	if err != nil {
		return err
	}
	s.entry(r, n, stat)
	if err := s.openNode(n, flags, r); err != nil {
		s.nodes.forget(n.id, 1) // it is not told of it
		return err
	}
	return nil
}

// withHandle lets do work on a handle that comes next.
func (s *session) withHandle(h header, a *arguments, do func(*handle) error) error {
	id := a.u64()
	if err := a.err(); err != nil {
		return err
	}
	open, err := s.handles.acquire(id, h.node)
	if err != nil {
		return err
	}
	defer s.handles.release(open, s.nodes)
	return do(open)
}

func (s *session) read(h header, a *arguments, r *reply) error {
	return s.withHandle(h, a, func(open *handle) error {
		offset, size := int64(a.u64()), a.u32()
		if err := a.err(); err != nil {
			return err
		}
		to := r.room(int(min(size, maxData)))
		done := 0
		for done < len(to) {
			var n int
			err := again(func() (err error) { n, err = unix.Pread(open.fd, to[done:], offset+int64(done)); return err })
			if err != nil && done == 0 {
				return err
			}
			if err != nil || n == 0 {
				break
			}
			done += n
		}
		r.keep(done)
		return nil
	})
}

func (s *session) write(h header, a *arguments, r *reply) error {
	return s.withHandle(h, a, func(open *handle) error {
		offset, size, how := int64(a.u64()), a.u32(), a.u32()
		a.skip(8)
		flags := a.u32()
		a.skip(4)
		if err := a.err(); err != nil || int64(size) != int64(len(a.rest)) {
			return unix.EINVAL
		}
		mode := 0
		if flags&unix.O_APPEND != 0 && how&writeFromCache == 0 {
			mode = unix.RWF_APPEND // wherever the end is by now
		}
		done := 0
		for done < len(a.rest) {
			var n int
			err := again(func() (err error) {
				n, err = unix.Pwritev2(open.fd, [][]byte{a.rest[done:]}, offset+int64(done), mode)
				return err
			})
			if err != nil && done == 0 {
				return err
			}
			if err != nil || n == 0 {
				break
			}
			done += n
		}
		r.u32(uint32(done))
		r.zeros(4)
		return nil
	})
}

func (s *session) fallocate(h header, a *arguments, _ *reply) error {
	const known = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	return s.withHandle(h, a, func(open *handle) error {
		offset, length, mode := int64(a.u64()), int64(a.u64()), a.u32()
		switch {
		case a.err() != nil:
			return unix.EINVAL
		case mode&^known != 0:
			return unix.EOPNOTSUPP
		}
		return again(func() error { return unix.Fallocate(open.fd, mode, offset, length) })
	})
}

func (s *session) lseek(h header, a *arguments, r *reply) error {
	return s.withHandle(h, a, func(open *handle) error {
		offset, whence := int64(a.u64()), a.u32()
		if err := a.err(); err != nil {
			return err
		}
		// Nobody else uses the position: reads and writes say where.
		if open.list != nil || whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
			return unix.EINVAL
		}
		to, err := unix.Seek(open.fd, offset, int(whence))
		if err != nil {
			return err
		}
		r.u64(uint64(to))
		return nil
	})
}

func (s *session) fsync(h header, a *arguments, _ *reply) error {
	return s.withHandle(h, a, func(open *handle) error {
		if a.u32()&fsyncDataOnly != 0 {
			return again(func() error { return unix.Fdatasync(open.fd) })
		}
		return again(func() error { return unix.Fsync(open.fd) })
	})
}

func (s *session) release(h header, a *arguments, _ *reply) error {
	return s.withHandle(h, a, func(open *handle) error {
		s.handles.close(open, s.nodes)
		return nil
	})
}
