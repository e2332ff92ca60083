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
	"path/filepath"
	"strconv"
	"syscall"
)

// PackOptions say how to pack. The zero value will do.
type PackOptions struct {
	// Follow packs what a path that is a symbolic link leads to. A path that ends in a
	// slash is followed in any case. Links below it stay links.
	Follow bool
	// Warn is told what is left out, or is not as it was when its packing began.
	Warn func(message string)
	// OnBytes is told how many bytes of files were packed, out of how many.
	OnBytes func(done, total int64)
}

// Pack writes the file or directory at path to w, with all below it: files, directories
// and symbolic links, with their modes and times, and which files are one. If path ends in
// "/." it packs what the directory has in it, under no name.
//
// Files may change meanwhile: what is packed of one is as long as it was in the beginning.
// Sockets, devices and pipes are left out. Pack fails with fs.ErrNotExist, among others.
// It does not end before a Write does.
func Pack(ctx context.Context, w io.Writer, path string, opts PackOptions) error {
	p := &packer{ctx: ctx, buf: make([]byte, bufferSize), first: make(map[inode]string), warn: opts.Warn}
	p.report = opts.OnBytes
	path, name, info, err := source(path, opts.Follow)
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode().IsRegular() {
		if p.total, err = size(ctx, path); err != nil {
			return err
		}
	}
	buffered := bufio.NewWriterSize(w, bufferSize)
	p.tar = tar.NewWriter(buffered)
	if err := p.mark(sizeRecord, strconv.FormatInt(p.total, 10)); err != nil {
		return err
	}
	if err := p.pack(path, name, info); err != nil {
		return err
	}
	if err := p.mark(endRecord, "1"); err != nil {
		return err
	}
	if err := p.tar.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

// Check fails as Pack does if there is nothing to pack at path.
func Check(path string, follow bool) error {
	_, _, _, err := source(path, follow)
	return err
}

// source finds what is to be packed, and its name in the archive.
func source(path string, follow bool) (resolved, name string, info fs.FileInfo, err error) {
	if path == "" {
		return "", "", nil, failed(path, fs.ErrNotExist)
	}
	name, resolved = contents, path
	if !meansContents(path) {
		name = filepath.Base(path)
	}
	if follow || meansDirectory(path) {
		if resolved, err = filepath.EvalSymlinks(path); err != nil {
			return "", "", nil, failed(path, err)
		}
	}
	info, err = os.Lstat(resolved)
	switch {
	case err != nil:
		err = failed(path, err)
	case meansDirectory(path) && !info.IsDir():
		err = failed(path, syscall.ENOTDIR)
	case !info.IsDir() && !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeSymlink:
		err = failed(path, errSpecial)
	}
	return resolved, name, info, err
}

// size is the number of bytes in all files at path and below. What cannot be read is
// left to Pack to complain of.
func size(ctx context.Context, path string) (int64, error) {
	var total int64
	seen := make(map[inode]bool)
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ctx.Err()
		}
		info, err := d.Info()
		if err != nil {
			return ctx.Err()
		}
		if id, shared := identity(info); !shared || !seen[id] {
			total += info.Size()
			if shared {
				seen[id] = true
			}
		}
		return ctx.Err()
	})
	return total, err
}

// inode is what files have in common that are one.
type inode struct{ device, number uint64 }

// identity returns a file's inode, and whether it has other names.
func identity(info fs.FileInfo) (id inode, shared bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Nlink < 2 {
		return inode{}, false
	}
	return inode{uint64(stat.Dev), stat.Ino}, true
}

type packer struct {
	progress
	ctx   context.Context
	tar   *tar.Writer
	buf   []byte
	first map[inode]string // the name under which a file with several names was packed
	warn  func(string)
}

// mark writes a global header with one record.
func (p *packer) mark(key, value string) error {
	return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{key: value}})
}

func (p *packer) note(path, why string) {
	if p.warn != nil {
		p.warn(display(path) + ": " + why)
	}
}

// pack packs what is at path under a name.
func (p *packer) pack(path, name string, info fs.FileInfo) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	switch info.Mode().Type() {
	case 0:
		return p.file(path, name)
	case fs.ModeDir:
		return p.directory(path, name, info)
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return p.gone(path, err)
		}
		h := header(tar.TypeSymlink, name, info)
		h.Linkname = target
		return p.tar.WriteHeader(h)
	}
	p.note(path, "left out: it is neither a file nor a directory")
	return nil
}

// gone forgives that something is no longer there that was there before.
func (p *packer) gone(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		p.note(path, "left out: it has just been removed")
		return nil
	}
	return failed(path, err)
}

func header(kind byte, name string, info fs.FileInfo) *tar.Header {
	return &tar.Header{
		Typeflag: kind, Name: name, Mode: modeBits(info.Mode()), ModTime: info.ModTime(), Format: tar.FormatPAX,
	}
}

func (p *packer) directory(path, name string, info fs.FileInfo) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return p.gone(path, err)
	}
	if err := p.tar.WriteHeader(header(tar.TypeDir, name+"/", info)); err != nil {
		return err
	}
	for _, entry := range entries {
		child := filepath.Join(path, entry.Name())
		info, err := entry.Info()
		if err == nil {
			err = p.pack(child, name+"/"+entry.Name(), info)
		} else {
			err = p.gone(child, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) file(path, name string) error {
	// It may have become something else since, a pipe that waits for a writer, say.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return p.gone(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return failed(path, err)
	case !info.Mode().IsRegular():
		p.note(path, "left out: it is no longer a file")
		return nil
	}
	id, shared := identity(info)
	if first, ok := p.first[id]; ok && shared {
		h := header(tar.TypeLink, name, info)
		h.Linkname = first
		return p.tar.WriteHeader(h)
	}
	// The size that the system tells is not always true: files of /proc and /sys are
	// longer or shorter. One that fits in the buffer is as long as what is read.
	n, err := io.ReadFull(f, p.buf)
	length := int64(n)
	switch {
	case err == nil:
		length = max(length, info.Size())
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return failed(path, err)
	}
	h := header(tar.TypeReg, name, info)
	h.Size = length
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	if shared {
		p.first[id] = name
	}
	if err := p.write(p.buf[:n]); err != nil {
		return err
	}
	return p.rest(f, path, length-int64(n))
}

// rest packs the next n bytes of a file. Zeros take the place of those that are no longer
// there, and what has been added is left out.
func (p *packer) rest(f *os.File, path string, n int64) error {
	for n > 0 {
		piece := p.buf[:min(n, int64(len(p.buf)))]
		got, err := io.ReadFull(f, piece)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			p.note(path, fmt.Sprintf("it was cut short while it was read: %d bytes are missing", n-int64(got)))
			return p.zeros(piece[:got], n)
		case err != nil:
			return failed(path, err)
		}
		if err := p.write(piece); err != nil {
			return err
		}
		n -= int64(len(piece))
	}
	return nil
}

// zeros packs n bytes, the first of which are given.
func (p *packer) zeros(first []byte, n int64) error {
	if err := p.write(first); err != nil {
		return err
	}
	clear(p.buf)
	for n -= int64(len(first)); n > 0; n -= int64(len(p.buf)) {
		if err := p.write(p.buf[:min(n, int64(len(p.buf)))]); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) write(b []byte) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	_, err := p.tar.Write(b)
	p.add(len(b))
	return err
}
