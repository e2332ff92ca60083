package share

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// rootNode is the number that the protocol gives the folder itself.
	rootNode = 1
	// maxNodes is how many files a guest's kernel may know at once.
	maxNodes = 1 << 19
	// maxReopened is how many directories on the way to a file may have to be opened again.
	maxReopened = 64
)

// inode is what makes a file that file.
type inode struct{ dev, ino uint64 }

// node is a file that the guest's kernel knows. What is in it belongs to the table's lock, but for
// fd, which stays as it is while the node is in use.
type node struct {
	id   uint64
	what inode
	kind uint32 // the type, as in a mode
	fd   int    // opened with O_PATH; -1: closed, to be opened again when it is needed

	lookups uint64 // how often the kernel was told of it, and has not forgotten it
	users   int    // requests and handles that use it now
	parent  *node  // where it was seen last
	name    string
	kids    int           // nodes whose parent it is
	idle    *list.Element // of the table's list; nil: in use, or closed
	seen    version       // of its contents, when it was last opened
}

// nodes are all of a session. Its methods may be called concurrently.
type nodes struct {
	limit  int    // how many may be open that are not in use
	device uint64 // of the folder's filesystem

	mu     sync.Mutex
	byID   map[uint64]*node
	byFile map[inode]*node
	last   uint64 // number that was given
	idle   *list.List
}

// newNodes makes a table with a folder in it, whose file it owns from then on.
func newNodes(root int, stat *unix.Stat_t, limit int) *nodes {
	n := &node{id: rootNode, what: inodeOf(stat), kind: stat.Mode & unix.S_IFMT, fd: root, lookups: 1, users: 1}
	return &nodes{
		limit: limit, device: stat.Dev, byID: map[uint64]*node{rootNode: n}, byFile: map[inode]*node{n.what: n}, last: rootNode, idle: list.New(),
	}
}

func inodeOf(stat *unix.Stat_t) inode { return inode{stat.Dev, stat.Ino} }

// acquire returns a node that the guest knows, opened. The caller owes a release.
func (t *nodes) acquire(id uint64) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || n.lookups == 0 {
		return nil, unix.ESTALE
	}
	if err := t.reopen(n); err != nil {
		return nil, err
	}
	t.use(n)
	return n, nil
}

func (t *nodes) use(n *node) {
	n.users++
	if n.idle != nil {
		t.idle.Remove(n.idle)
		n.idle = nil
	}
}

// release ends a use of a node.
func (t *nodes) release(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.users--; n.users > 0 {
		return
	}
	if t.byID[n.id] != n {
		t.close(n)
		return
	}
	if n.fd >= 0 {
		t.rest(n)
	}
}

// rest notes that an open node is not in use, and closes the one that has been so for longest if
// they are too many.
func (t *nodes) rest(n *node) {
	n.idle = t.idle.PushFront(n)
	for t.idle.Len() > t.limit {
		t.close(t.idle.Back().Value.(*node))
	}
}

func (t *nodes) close(n *node) {
	if n.idle != nil {
		t.idle.Remove(n.idle)
		n.idle = nil
	}
	if n.fd >= 0 {
		_ = unix.Close(n.fd) // it says nothing: nothing was written to it
		n.fd = -1
	}
}

// reopen opens a node again that was closed, and those of the directories on the way to it. If
// another file has taken its place the error is unix.ESTALE, and the guest's kernel looks again.
func (t *nodes) reopen(n *node) error {
	var closed []*node
	for ; n.fd < 0; n = n.parent {
		if n.parent == nil || len(closed) == maxReopened {
			return unix.ESTALE
		}
		closed = append(closed, n)
	}
	for i := len(closed) - 1; i >= 0; i-- {
		n := closed[i]
		fd, stat, err := openEntry(n.parent.fd, n.name)
		if err != nil {
			return unix.ESTALE
		}
		if inodeOf(stat) != n.what || stat.Mode&unix.S_IFMT != n.kind {
			_ = unix.Close(fd)
			return unix.ESTALE
		}
		n.fd = fd
		// None of them is closed before all are open: minOpen says that a limit is at least as many.
		t.rest(n)
	}
	return nil
}

// add tells that the guest's kernel is told of a file, fd, which is owned from then on, as an entry
// of parent, which is in use. The caller owes a release.
func (t *nodes) add(fd int, stat *unix.Stat_t, parent *node, name string) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	what, kind := inodeOf(stat), stat.Mode&unix.S_IFMT
	n := t.byFile[what]
	if n != nil && n.kind != kind {
		// That file is gone, and its number is another's now.
		delete(t.byFile, what)
		n = nil
	}
	switch {
	case n == nil && len(t.byID) >= maxNodes:
		_ = unix.Close(fd)
		return nil, unix.ENFILE
	case n == nil:
		t.last++
		n = &node{id: t.last, what: what, kind: kind, fd: fd}
		t.byID[n.id], t.byFile[what] = n, n
	case n.fd < 0:
		n.fd = fd
	default:
		_ = unix.Close(fd)
	}
	n.lookups++
	t.use(n)
	t.move(n, parent, name)
	return n, nil
}

// moved tells that an entry has another place now.
func (t *nodes) moved(stat *unix.Stat_t, parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byFile[inodeOf(stat)]; n != nil {
		t.move(n, parent, name)
	}
}

func (t *nodes) move(n, parent *node, name string) {
	if n.id == rootNode || n == parent || t.byID[parent.id] != parent {
		return
	}
	before := n.parent
	parent.kids++
	n.parent, n.name = parent, name
	t.drop(before)
}

// drop takes one kid from a node, and removes it if nobody knows it any more.
func (t *nodes) drop(n *node) {
	for n != nil {
		n.kids--
		if !t.unknown(n) {
			return
		}
		n = t.remove(n)
	}
}

func (t *nodes) unknown(n *node) bool { return n.lookups == 0 && n.kids == 0 && n.id != rootNode }

// remove takes a node out and returns the one that it was in.
func (t *nodes) remove(n *node) *node {
	delete(t.byID, n.id)
	if t.byFile[n.what] == n {
		delete(t.byFile, n.what)
	}
	if n.users == 0 {
		t.close(n)
	}
	parent := n.parent
	n.parent = nil
	return parent
}

// forget takes back that the guest's kernel was told of a node, so often.
func (t *nodes) forget(id, times uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootNode {
		return
	}
	n.lookups -= min(n.lookups, times)
	if t.unknown(n) {
		t.drop(t.remove(n))
	}
}

// openedAs notes the version of a node's contents at its opening, and tells whether it was the same
// the time before.
func (t *nodes) openedAs(n *node, v version) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	same := n.seen == v
	n.seen = v
	return same
}

// closeAll closes all. None of them is in use.
func (t *nodes) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.byID {
		t.close(n)
	}
}
