package share

import (
	"sync"

	"golang.org/x/sys/unix"
)

// handle is a file or directory that the guest has opened.
type handle struct {
	id    uint64
	node  *node // in use for as long as it is open
	fd    int
	users int     // requests that use it now, and one until it is closed; it belongs to the table's lock
	list  *stream // of a directory
}

// handles are all of a session. Its methods may be called concurrently.
type handles struct {
	limit int

	mu   sync.Mutex
	byID map[uint64]*handle
	last uint64
}

func newHandles(limit int) *handles { return &handles{limit: limit, byID: make(map[uint64]*handle)} }

// add makes a handle of an open file, which it owns if that succeeds, and of a use of its node.
func (t *handles) add(n *node, fd int, list *stream) (*handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byID) >= t.limit {
		return nil, unix.ENFILE
	}
	t.last++
	open := &handle{id: t.last, node: n, fd: fd, users: 1, list: list}
	t.byID[open.id] = open
	return open, nil
}

// acquire returns a handle of a node. The caller owes a release.
func (t *handles) acquire(id, node uint64) (*handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	open := t.byID[id]
	if open == nil || open.node.id != node {
		return nil, unix.EBADF
	}
	open.users++
	return open, nil
}

// release ends a use of a handle.
func (t *handles) release(open *handle, nodes *nodes) {
	t.mu.Lock()
	open.users--
	over := open.users == 0
	t.mu.Unlock()
	if over {
		_ = unix.Close(open.fd) // what was written to it the guest was told of
		nodes.release(open.node)
	}
}

// close closes a handle, once nothing uses it.
func (t *handles) close(open *handle, nodes *nodes) {
	t.mu.Lock()
	closed := t.byID[open.id] != open
	delete(t.byID, open.id)
	t.mu.Unlock()
	if !closed {
		t.release(open, nodes)
	}
}

// closeAll closes all.
func (t *handles) closeAll(nodes *nodes) {
	t.mu.Lock()
	all := t.byID
	t.byID = make(map[uint64]*handle)
	t.mu.Unlock()
	for _, open := range all {
		t.release(open, nodes)
	}
}
