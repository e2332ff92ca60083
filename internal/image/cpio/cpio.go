// Package cpio writes archives in the "newc" format, which the Linux kernel unpacks as
// its first root filesystem.
package cpio

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

// The file types of a mode, as in stat(2).
const (
	typeDirectory = 0o040000
	typeRegular   = 0o100000
)

const (
	trailer   = "TRAILER!!!"
	alignment = 4
	maxName   = 4096
)

// Writer writes an archive. Everything in it belongs to root and has no date, so that
// equal contents make equal archives. The first error sticks.
type Writer struct {
	w     io.Writer
	inode uint32
	err   error
}

// NewWriter returns a Writer to w. The caller closes it.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Directory adds a directory. Its parent comes first.
func (w *Writer) Directory(name string, perm uint32) error {
	return w.entry(name, typeDirectory|perm, nil)
}

// File adds a regular file. Its directory comes first.
func (w *Writer) File(name string, perm uint32, contents []byte) error {
	return w.entry(name, typeRegular|perm, contents)
}

// Close ends the archive. It does not close the underlying writer.
func (w *Writer) Close() error {
	w.record(trailer, 0, 0, 1, nil)
	err := w.err
	if w.err == nil {
		w.err = errors.New("archive is closed")
	}
	return err
}

func (w *Writer) entry(name string, mode uint32, contents []byte) error {
	name = strings.TrimPrefix(name, "/")
	switch {
	case w.err != nil:
		return w.err
	case name == "" || name == "." || len(name) > maxName || name == trailer || path.Clean(name) != name ||
		strings.HasPrefix(name, "../") || name == "..", strings.ContainsRune(name, 0):
		return fmt.Errorf("add %q to archive: invalid name", name)
	case len(contents) > math.MaxUint32:
		return fmt.Errorf("add %q to archive: file is too large", name)
	}
	links := uint32(1)
	if mode&typeDirectory != 0 {
		links = 2
	}
	w.inode++
	w.record(name, w.inode, mode, links, contents)
	return w.err
}

// record writes a header of "070701" and thirteen fields of eight hexadecimal digits,
// the name with a zero byte, and the contents; both are padded.
func (w *Writer) record(name string, inode, mode, links uint32, contents []byte) {
	if w.err != nil {
		return
	}
	var b strings.Builder
	b.WriteString("070701")
	for _, field := range []uint32{
		inode, mode, 0, 0, links, 0 /* time */, uint32(len(contents)),
		0, 0, 0, 0 /* devices */, uint32(len(name) + 1), 0, /* no checksum */
	} {
		fmt.Fprintf(&b, "%08X", field)
	}
	b.WriteString(name)
	b.WriteByte(0)
	b.WriteString(padding(b.Len()))
	for _, part := range [][]byte{[]byte(b.String()), contents, []byte(padding(len(contents)))} {
		if _, err := w.w.Write(part); err != nil {
			w.err = fmt.Errorf("write archive: %w", err)
			return
		}
	}
}

func padding(n int) string {
	return strings.Repeat("\x00", (alignment-n%alignment)%alignment)
}
