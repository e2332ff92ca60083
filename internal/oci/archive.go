package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// maxEntries is how many entries an archive may have. An image has a few for each layer.
const maxEntries = 20_000

// archive has the files in a tar file. They are read where they are, and nothing is unpacked.
type archive struct {
	file    *os.File
	entries map[string]entry
}

// entry is a file in an archive, or a link to one.
type entry struct {
	offset, size int64
	link         string // the entry that this one stands for
}

// openArchive finds what is in the tar file at path. One that is compressed is decompressed into
// a file without a name in the cache.
func openArchive(ctx context.Context, path string, opts Options) (*archive, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no file", ErrInvalid, path)
	}
	if err == nil {
		file, err = decompressed(ctx, file, opts)
	}
	a := &archive{file: file, entries: map[string]entry{}}
	if err == nil {
		err = a.index(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read archive %s: %w", path, err), file.Close())
	}
	return a, nil
}

// decompressed returns the file itself if it is not compressed, and else closes it. It returns a
// file, to be closed, even if it fails.
func decompressed(ctx context.Context, file *os.File, opts Options) (*os.File, error) {
	in := bufio.NewReaderSize(&cancelled{ctx, file}, 128<<10)
	magic, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return file, err
	}
	var r io.Reader
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(in)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var decoder *zstd.Decoder
		if decoder, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20)); err == nil {
			defer decoder.Close()
			r = decoder
		}
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		// It would be given as much memory as it asks for.
		return file, fmt.Errorf("%w: it is compressed with xz; decompress it with unxz", ErrInvalid)
	default:
		_, err = file.Seek(0, io.SeekStart)
		return file, err
	}
	if err != nil {
		return file, fmt.Errorf("decompress: %w: %w", ErrInvalid, err)
	}
	scratch, err := opts.Cache.Scratch()
	if err != nil {
		return file, err
	}
	defer file.Close() //nolint:errcheck // only read
	// What is in it is bounded, and so is what is around that.
	limit := opts.MaxSize + maxEntries*1024
	n, err := io.Copy(scratch, io.LimitReader(r, limit+1))
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		err = noSpace("the decompressed archive", opts.Cache.Dir(), err)
	case err != nil:
		err = fmt.Errorf("decompress: %w: %w", ErrInvalid, err)
	case n > limit:
		err = fmt.Errorf("%w: more than %d bytes when it is decompressed", ErrTooLarge, limit)
	default:
		_, err = scratch.Seek(0, io.SeekStart)
	}
	return scratch, err
}

// cancelled is a reader that fails when ctx ends.
type cancelled struct {
	ctx context.Context // that of the one call which reads
	io.Reader
}

// Read is io.Reader's.
func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.Reader.Read(p)
}

// index notes where each file is. Of several with the same name the last one counts, as if they
// were unpacked one after the other.
func (a *archive) index(ctx context.Context) error {
	r := tar.NewReader(a.file)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		header, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if n == maxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrTooLarge, maxEntries)
		}
		name := path.Clean(strings.TrimLeft(header.Name, "/"))
		switch header.Typeflag {
		case tar.TypeReg:
			if isSparse(header) {
				continue // its bytes are not all there
			}
			offset, err := a.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			a.entries[name] = entry{offset: offset, size: header.Size}
		case tar.TypeSymlink:
			a.entries[name] = entry{link: path.Join(path.Dir(name), header.Linkname)}
		case tar.TypeLink:
			a.entries[name] = entry{link: path.Clean(strings.TrimLeft(header.Linkname, "/"))}
		}
	}
}

func isSparse(header *tar.Header) bool {
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (a *archive) open(name string) (io.ReadSeekCloser, int64, error) {
	const mostLinks = 10
	at := path.Clean(name)
	for range mostLinks {
		e, found := a.entries[at]
		if !found {
			break
		}
		if e.link == "" {
			return section{io.NewSectionReader(a.file, e.offset, e.size)}, e.size, nil
		}
		at = e.link
	}
	return nil, 0, &fs.PathError{Op: "open", Path: clean(name), Err: fs.ErrNotExist}
}

// Close closes the tar file.
func (a *archive) Close() error { return a.file.Close() }

// section is a part of a file that is closed elsewhere.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }
