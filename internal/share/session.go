package share

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

const (
	// parallel is how many requests are dealt with at once. What comes then waits in the guest.
	parallel = 16
	// maxData is the most that one request reads or writes, in bytes.
	maxData = guestapi.MaxFolderMessage - guestapi.FolderMessageHead
	// pageSize is that of the guest. One with larger pages is allowed more data than it asks for.
	pageSize = 4096
	// background is how many requests the guest's kernel makes before anybody waits for their answers.
	background = 64
)

// session is one connection with a guest's kernel, from its mount to its end.
type session struct {
	folder  *Folder
	owner   owner
	nodes   *nodes
	handles *handles

	begun bool // there was an INIT; only the goroutine that reads uses it

	sending sync.Mutex
	to      io.Writer
}

// slot is what one of the requests that are dealt with at once needs.
type slot struct{ in, out []byte }

// Serve serves the folder over conn until that ends, and then all of it is given back. Its error says
// why it ended; it is nil if the guest has hung up. It does not close conn.
func (f *Folder) Serve(conn io.ReadWriter) error {
	root, stat, err := f.begin()
	if err != nil {
		return fmt.Errorf("share %s: %w", f.path, err)
	}
	defer f.sessions.Done()
	s := &session{folder: f, owner: f.owner, nodes: newNodes(root, stat, f.limit), handles: newHandles(f.limit), to: conn}
	if err := s.serve(conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("share %s: %w", f.path, err)
	}
	return nil
}

func (s *session) serve(from io.Reader) error {
	slots := make(chan *slot, parallel)
	for range parallel {
		slots <- &slot{}
	}
	var working sync.WaitGroup
	defer func() {
		working.Wait()
		s.handles.closeAll(s.nodes)
		s.nodes.closeAll()
	}()
	for {
		at := <-slots
		h, body, grown, err := readRequest(from, at.in)
		if err != nil {
			return err
		}
		at.in = grown
		if s.take(h, &arguments{rest: body}) {
			slots <- at
			continue
		}
		if h.op == opInit {
			if err := s.answer(at, h, body); err != nil {
				return err
			}
			slots <- at
			continue
		}
		begun := s.begun
		working.Go(func() {
			if !begun {
				h.op = 0 // none
			}
			// If it fails the connection is gone, which the next read finds.
			_ = s.answer(at, h, body)
			slots <- at
		})
	}
}

// take deals with requests that have no answer, which is done in their order, and tells whether
// this is one.
func (s *session) take(h header, a *arguments) bool {
	switch h.op {
	case opForget:
		if times := a.u64(); a.err() == nil {
			s.nodes.forget(h.node, times)
		}
	case opBatchForget:
		count := a.u32()
		a.skip(4)
		for range count {
			id, times := a.u64(), a.u64()
			if a.err() != nil {
				break
			}
			s.nodes.forget(id, times)
		}
	case opInterrupt:
		// The answer to what it wants to interrupt is on its way.
	default:
		return false
	}
	return true
}

// answer deals with a request and answers it.
func (s *session) answer(at *slot, h header, body []byte) error {
	r := newReply(at.out)
	err := s.do(h, &arguments{rest: body}, r)
	at.out = r.buf
	s.sending.Lock()
	defer s.sending.Unlock()
	_, err = s.to.Write(r.finish(h.unique, err))
	return err
}

// operation does what a request asks for.
type operation struct {
	do func(*session, header, *arguments, *reply) error
	// changes tells that it is about changing something: a folder that is read only has none of it.
	changes bool
}

// operationOf returns the operation of an opcode. The guest's kernel remembers of those that are
// none that they are not, and does without.
func operationOf(op opcode) (operation, bool) {
	switch op {
	case opInit:
		return operation{do: (*session).init}, true
	case opDestroy:
		return operation{do: func(*session, header, *arguments, *reply) error { return nil }}, true
	case opLookup:
		return operation{do: (*session).lookup}, true
	case opGetattr:
		return operation{do: (*session).getattr}, true
	case opSetattr:
		return operation{do: (*session).setattr, changes: true}, true
	case opAccess:
		return operation{do: (*session).access}, true
	case opStatfs:
		return operation{do: (*session).statfs}, true
	case opReadlink:
		return operation{do: (*session).readlink}, true
	case opSymlink:
		return operation{do: (*session).symlink, changes: true}, true
	case opMknod:
		return operation{do: (*session).mknod, changes: true}, true
	case opMkdir:
		return operation{do: (*session).mkdir, changes: true}, true
	case opLink:
		return operation{do: (*session).link, changes: true}, true
	case opUnlink:
		return operation{do: (*session).unlink, changes: true}, true
	case opRmdir:
		return operation{do: (*session).rmdir, changes: true}, true
	case opRename:
		return operation{do: (*session).rename, changes: true}, true
	case opRename2:
		return operation{do: (*session).rename2, changes: true}, true
	case opCreate:
		return operation{do: (*session).create, changes: true}, true
	case opOpen:
		return operation{do: (*session).open}, true // which looks itself whether that is for writing
	case opRead:
		return operation{do: (*session).read}, true
	case opWrite:
		return operation{do: (*session).write, changes: true}, true
	case opFallocate:
		return operation{do: (*session).fallocate, changes: true}, true
	case opLseek:
		return operation{do: (*session).lseek}, true
	case opFsync, opFsyncdir:
		return operation{do: (*session).fsync}, true
	case opRelease, opReleasedir:
		return operation{do: (*session).release}, true
	case opOpendir:
		return operation{do: (*session).opendir}, true
	case opReaddir:
		return operation{do: (*session).readdir}, true
	case opReaddirplus:
		return operation{do: (*session).readdirplus}, true
	}
	return operation{}, false
}

func (s *session) do(h header, a *arguments, r *reply) error {
	op, ok := operationOf(h.op)
	switch {
	case !ok:
		return unix.ENOSYS
	case op.changes && s.folder.readOnly:
		return unix.EROFS
	}
	return op.do(s, h, a, r)
}

// init agrees with the guest's kernel upon how they speak.
func (s *session) init(_ header, a *arguments, r *reply) error {
	major, minor, readahead, flags := a.u32(), a.u32(), a.u32(), a.u32()
	if err := a.err(); err != nil {
		return err
	}
	if s.begun || major != protocolMajor || minor < oldestMinor {
		return unix.EPROTO
	}
	r.u32(protocolMajor)
	r.u32(min(minor, protocolMinor))
	r.u32(readahead)
	r.u32(flags & wantedFlags)
	r.u16(background)
	r.u16(background * 3 / 4) // from there on the kernel takes it for busy
	r.u32(maxData)
	r.u32(1) // times are in nanoseconds
	r.u16(maxData / pageSize)
	r.zeros(initOutSize - r.size())
	s.begun = true
	return nil
}
