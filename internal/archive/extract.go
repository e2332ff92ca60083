package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
)

// ExtractOptions say how to extract. The zero value will do.
type ExtractOptions struct {
	// SetID keeps the set-user-ID, set-group-ID and sticky bits.
	SetID bool
	// OnBytes is told how many bytes of files were extracted, out of how many.
	OnBytes func(done, total int64)
}

// Extract reads an archive from r and puts what is in it at dst, where the parent of dst
// must exist. If dst is a directory, it is put into it under its name, or without one if
// only the contents of a directory were packed. Otherwise it becomes dst. A dst that ends
// in a slash must be, or become, a directory.
//
// A file that is there is replaced at once when the new one is whole, and so is a symbolic
// link, whatever it leads to. Directories that are there stay, with their modes, and get
// what they lack. A directory never takes the place of anything else, nor the other way
// round: that fails with syscall.ENOTDIR or syscall.EISDIR. What is new belongs to this
// process's user.
//
// Whatever the archive says, nothing outside of dst is written or changed. An archive that
// is not whole fails with ErrMalformed, after as much as there was of it. Extract does not
// end before a Read does.
func Extract(ctx context.Context, r io.Reader, dst string, opts ExtractOptions) error {
	buffered := bufio.NewReaderSize(r, bufferSize)
	x := &extractor{ctx: ctx, tar: tar.NewReader(buffered), buf: make([]byte, bufferSize), allowed: permissions}
	x.report = opts.OnBytes
	if opts.SetID {
		x.allowed |= setUID | setGID | sticky
	}
	defer x.close()
	if err := x.begin(); err != nil {
		return err
	}
	h, err := x.next()
	switch {
	case err != nil:
		return err
	case h == nil:
		return fmt.Errorf("%w: nothing is in it", ErrMalformed)
	}
	if err := x.first(h, dst); err != nil {
		return err
	}
	for {
		h, err := x.next()
		if err != nil {
			return err
		}
		if h == nil {
			break
		}
		if err := x.extract(h); err != nil {
			return err
		}
	}
	for len(x.open) > 0 {
		if err := x.leave(); err != nil {
			return err
		}
	}
	return x.end(buffered)
}

type extractor struct {
	progress
	ctx     context.Context
	tar     *tar.Reader
	buf     []byte
	allowed int64 // the bits that modes may have

	name    string         // of the archive's first entry; all others are below it
	base    *os.Root       // the directory that the first entry is; nil if it is none
	open    []openDir      // that the present entry is in, from base on
	current *directory     // the last of open
	temp    temporaryNames // for files that are not whole
}

// openDir is a directory that entries still go to. What is said of it is done when it is
// left: until then it must be writable, and its time changes.
type openDir struct {
	path  string // from base
	isNew bool
	h     *tar.Header
}

func (x *extractor) close() {
	if x.current != nil {
		x.current.close()
	}
	if x.base != nil {
		x.base.Close()
	}
}

// first puts the first entry at dst, or into it.
func (x *extractor) first(h *tar.Header, dst string) error {
	isDir := h.Typeflag == tar.TypeDir
	x.name = h.Name
	if h.Typeflag == tar.TypeLink || x.name == contents && !isDir || x.name != contents && !isName(x.name) {
		return fmt.Errorf("%w: it begins with %s", ErrMalformed, display(x.name))
	}
	parent, name := dst, x.name
	info, err := os.Stat(dst)
	switch {
	case err == nil && info.IsDir():
	case err == nil && !info.Mode().IsRegular():
		return failed(dst, errSpecial)
	case err == nil && (isDir || meansDirectory(dst)):
		return failed(dst, syscall.ENOTDIR)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return failed(dst, err)
	case dst == "" || !isDir && meansDirectory(dst):
		return noDirectory(dst)
	default:
		clean := filepath.Clean(dst)
		parent, name = filepath.Dir(clean), filepath.Base(clean)
	}
	root, err := os.OpenRoot(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return noDirectory(parent)
	}
	if err != nil {
		return failed(parent, err)
	}
	if isDir && name == contents {
		x.base = root
		return x.enter(openDir{path: ".", h: h})
	}
	d, err := openDirectory(root)
	if err != nil {
		root.Close()
		return failed(parent, err)
	}
	defer d.close()
	at := filepath.Join(parent, name)
	if !isDir {
		if err := x.put(d, name, "", h); err != nil {
			return failed(at, err)
		}
		return nil
	}
	isNew, err := d.makeDirectory(name)
	if err == nil {
		x.base, err = root.OpenRoot(name)
	}
	if err != nil {
		return failed(at, err)
	}
	return x.enter(openDir{path: ".", isNew: isNew, h: h})
}

// extract puts an entry that is not the first one into its directory.
func (x *extractor) extract(h *tar.Header) error {
	name, err := x.inside(h.Name)
	if err != nil {
		return err
	}
	parent, leaf := path.Split(name)
	parent = path.Clean(parent)
	for len(x.open) > 0 && x.open[len(x.open)-1].path != parent {
		if err := x.leave(); err != nil {
			return err
		}
	}
	if len(x.open) == 0 {
		return fmt.Errorf("%w: %s comes before its directory or after it", ErrMalformed, display(h.Name))
	}
	if h.Typeflag != tar.TypeDir {
		if err := x.put(x.current, leaf, parent, h); err != nil {
			return failed(h.Name, err)
		}
		return nil
	}
	isNew, err := x.current.makeDirectory(leaf)
	if err != nil {
		return failed(h.Name, err)
	}
	return x.enter(openDir{path: name, isNew: isNew, h: h})
}

// enter makes a directory the current one.
func (x *extractor) enter(d openDir) error {
	x.open = append(x.open, d)
	return x.reenter()
}

// reenter opens the last of x.open.
func (x *extractor) reenter() error {
	if x.current != nil {
		x.current.close()
		x.current = nil
	}
	at := x.open[len(x.open)-1]
	root, err := x.base.OpenRoot(at.path)
	if err != nil {
		return failed(at.h.Name, err)
	}
	if x.current, err = openDirectory(root); err != nil {
		root.Close()
		return failed(at.h.Name, err)
	}
	return nil
}

// leave ends the current directory and goes back to the one before.
func (x *extractor) leave() error {
	at := x.open[len(x.open)-1]
	x.open = x.open[:len(x.open)-1]
	if at.isNew {
		if err := x.current.settle(fileMode(at.h.Mode&x.allowed), at.h.ModTime); err != nil {
			return failed(at.h.Name, err)
		}
	}
	if len(x.open) == 0 {
		return nil
	}
	return x.reenter()
}

// put puts a file or a link into a directory, which is at a path from base.
func (x *extractor) put(d *directory, name, at string, h *tar.Header) error {
	if err := d.replaceable(name); err != nil {
		return err
	}
	temp := x.temp.next()
	err := x.make(d, temp, at, h)
	if err == nil {
		err = d.root.Rename(temp, name)
	}
	// Two names of one file stay when one is renamed to the other.
	if err != nil || h.Typeflag == tar.TypeLink {
		_ = d.root.Remove(temp) // it may not be there
	}
	return err
}

// make makes what put puts, under a name that nothing has.
func (x *extractor) make(d *directory, name, at string, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeSymlink:
		if err := d.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return d.setTime(name, h.ModTime)
	case tar.TypeLink:
		old, err := x.inside(h.Linkname)
		if err != nil {
			return err
		}
		return x.base.Link(old, path.Join(at, name))
	}
	return x.file(d, name, h)
}

// file writes a file of the archive.
func (x *extractor) file(d *directory, name string, h *tar.Header) (err error) {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := x.copy(f); err != nil {
		return err
	}
	if err := f.Chmod(fileMode(h.Mode & x.allowed)); err != nil {
		return err
	}
	return d.setTime(name, h.ModTime)
}

// copy writes what is left of the present entry.
func (x *extractor) copy(f *os.File) error {
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		n, err := x.tar.Read(x.buf)
		if n > 0 {
			if _, err := f.Write(x.buf[:n]); err != nil {
				return err
			}
			x.add(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%w: it is cut short: %w", ErrMalformed, err)
		case err != nil:
			return err
		}
	}
}
