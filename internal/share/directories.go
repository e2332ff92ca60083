package share

import (
	"bytes"
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// listSize is how much of a directory is read at once, in bytes. A guest may have it kept for
	// every directory that it has open.
	listSize = 4 << 10
	// maxList is the most that a guest gets of it at once, in bytes.
	maxList = 64 << 10
	// linuxDirentSize is that of an entry as the kernel of the host has it, without the name.
	linuxDirentSize = 19
)

// stream is the list of a directory's entries, as far as it was read.
type stream struct {
	mu     sync.Mutex // held while a request reads
	at     int64      // where the next entry is, as the filesystem counts
	buf    []byte
	unread []byte // part of buf
}

// dirent is an entry of a directory.
type dirent struct {
	ino  uint64
	next int64 // where the entry behind it is
	kind uint8
	name string
}

func (s *session) opendir(h header, a *arguments, r *reply) error {
	n, err := s.nodes.acquire(h.node)
	if err != nil {
		return err
	}
	fd := -1
	if n.kind != unix.S_IFDIR {
		err = unix.ENOTDIR
	} else {
		fd, err = openBeneath(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		s.nodes.release(n)
		return err
	}
	open, err := s.handles.add(n, fd, &stream{})
	if err != nil {
		_ = unix.Close(fd)
		s.nodes.release(n)
		return err
	}
	r.u64(open.id)
	r.zeros(8)
	return nil
}

func (s *session) readdir(h header, a *arguments, r *reply) error {
	return s.list(h, a, r, 0, func(_ *handle, e dirent) { r.dirent(e) })
}

func (s *session) readdirplus(h header, a *arguments, r *reply) error {
	return s.list(h, a, r, entrySize, func(open *handle, e dirent) {
		if !s.entryOf(r, open.node, e.name) {
			r.zeros(entrySize) // the guest's kernel looks itself if it needs to
		}
		r.dirent(e)
	})
}

// entryOf adds what there is to say of an entry of a directory, unless it cannot be looked at.
func (s *session) entryOf(r *reply, dir *node, name string) bool {
	if name == "." || name == ".." {
		return false
	}
	fd, stat, err := openEntry(dir.fd, name)
	if err != nil {
		return false
	}
	return s.tell(r, fd, stat, dir, name) == nil
}

// list adds entries for as long as there is room, each by add, and so many bytes more.
func (s *session) list(h header, a *arguments, r *reply, extra int, add func(*handle, dirent)) error {
	return s.withHandle(h, a, func(open *handle) error {
		offset, size := int64(a.u64()), int(min(a.u32(), maxList))
		if err := a.err(); err != nil {
			return err
		}
		l := open.list
		if l == nil {
			return unix.ENOTDIR
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if err := l.seek(open.fd, offset); err != nil {
			return err
		}
		for {
			e, rest, err := l.next(open.fd)
			if err != nil && r.size() == 0 {
				return err
			}
			if err != nil || rest == nil || r.size()+extra+direntLength(e.name) > size {
				return nil
			}
			add(open, e)
			l.unread, l.at = rest, e.next
		}
	})
}

// seek goes to where an entry is.
func (l *stream) seek(fd int, offset int64) error {
	if offset == l.at {
		return nil
	}
	if _, err := unix.Seek(fd, offset, unix.SEEK_SET); err != nil {
		return err
	}
	l.at, l.unread = offset, nil
	return nil
}

// next returns the next entry, and what is unread behind it: nil if there was none.
func (l *stream) next(fd int) (e dirent, rest []byte, err error) {
	if len(l.unread) == 0 {
		if l.buf == nil {
			l.buf = make([]byte, listSize)
		}
		var n int
		if err := again(func() (err error) { n, err = unix.Getdents(fd, l.buf); return err }); err != nil || n == 0 {
			return dirent{}, nil, err
		}
		l.unread = l.buf[:n]
	}
	length := int(binary.NativeEndian.Uint16(l.unread[16:]))
	entry := l.unread[:length]
	name, _, _ := bytes.Cut(entry[linuxDirentSize:], []byte{0})
	return dirent{
		ino: binary.NativeEndian.Uint64(entry), next: int64(binary.NativeEndian.Uint64(entry[8:])), kind: entry[18], name: string(name),
	}, l.unread[length:], nil
}

// direntLength is how long an entry is in a reply.
func direntLength(name string) int {
	return (direntSize + len(name) + direntAlignment - 1) / direntAlignment * direntAlignment
}

// dirent adds an entry of a directory.
func (r *reply) dirent(e dirent) {
	end := r.size() + direntLength(e.name)
	r.u64(e.ino)
	r.u64(uint64(e.next))
	r.u32(uint32(len(e.name)))
	r.u32(uint32(e.kind))
	r.text(e.name)
	r.zeros(end - r.size())
}
