package rootfs

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// maxFollowed is how many symbolic links one path may lead over, as in Linux.
const maxFollowed = 40

// clean returns a path in a layer as one from the root, without a slash before it, and ""
// for the root itself. One that leads out of the root is malformed.
func clean(name string) (string, error) {
	switch {
	case name == "":
		return "", malformed("it has no name")
	case len(name) > maxPath:
		return "", malformed("its path has more than %d bytes", maxPath)
	case strings.ContainsRune(name, 0):
		return "", malformed("there is a zero byte in its name")
	}
	name = path.Clean(strings.TrimLeft(name, "/"))
	if name == ".." || strings.HasPrefix(name, "../") {
		return "", malformed("it leads out of the root")
	}
	if name == "." {
		return "", nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > ext4.MaxName {
			return "", malformed("its name has more than %d bytes", ext4.MaxName)
		}
	}
	return name, nil
}

// find returns what a path leads to. Symbolic links are followed within the tree, but for
// the last part of the path if last is not set. An error wraps fs.ErrNotExist,
// syscall.ENOTDIR or syscall.ELOOP.
func (t *Tree) find(name string, last bool) (*inode, error) {
	w := walk{tree: t, at: t.root, rest: name, last: last}
	return w.run()
}

// findDirectory returns the directory that a path leads to. If it is not there it is made,
// by a layer.
func (t *Tree) findDirectory(name string, layer int) (*inode, error) {
	w := walk{tree: t, at: t.root, rest: name, last: true, makes: true, layer: layer}
	n, err := w.run()
	if err == nil && !n.isDir() {
		err = syscall.ENOTDIR
	}
	return n, err
}

// walk follows a path.
type walk struct {
	tree     *Tree
	at       *inode
	rest     string
	last     bool // follow the last link, too
	makes    bool // directories that are missing
	layer    int  // that makes them
	followed int
}

func (w *walk) run() (*inode, error) {
	for w.rest != "" {
		var part string
		part, w.rest, _ = strings.Cut(w.rest, "/")
		if part == "" {
			continue
		}
		if !w.at.isDir() {
			return nil, syscall.ENOTDIR
		}
		if err := w.step(part); err != nil {
			return nil, err
		}
	}
	return w.at, nil
}

// step goes to a part of the path.
func (w *walk) step(part string) error {
	switch part {
	case ".":
		return nil
	case "..":
		w.at = w.at.parent
		return nil
	}
	next := w.at.children[part].inode
	switch {
	case next == nil && !w.makes:
		return fs.ErrNotExist
	case next == nil:
		if len(part) > ext4.MaxName {
			return malformed("its name has more than %d bytes", ext4.MaxName)
		}
		next = newDirectory(w.layer)
		if err := w.tree.link(w.at, part, next, w.layer); err != nil {
			return err
		}
	case next.kind() == ext4.TypeSymlink && (w.last || strings.Trim(w.rest, "/") != ""):
		if w.followed++; w.followed > maxFollowed {
			return syscall.ELOOP
		}
		if strings.HasPrefix(next.target, "/") {
			w.at = w.tree.root
		}
		w.rest = next.target + "/" + w.rest
		return nil
	}
	w.at = next
	return nil
}

// split divides a clean path into its directory and its name, which the root has none of.
func split(name string) (dir, base string) {
	dir, base = path.Split(name)
	return strings.TrimSuffix(dir, "/"), base
}

// failed says which path something failed for.
func failed(name string, err error) error { return fmt.Errorf(shown+": %w", name, err) }
