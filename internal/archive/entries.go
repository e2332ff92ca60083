package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxPath bounds the length of a name in an archive: no system call takes a longer one.
const maxPath = 4096

// read reads a header of the archive.
func (x *extractor) read() (*tar.Header, error) {
	if err := x.ctx.Err(); err != nil {
		return nil, err
	}
	h, err := x.tar.Next()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("%w: it is cut short: %w", ErrMalformed, io.ErrUnexpectedEOF)
	case errors.Is(err, tar.ErrHeader):
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return h, err
}

// begin reads what an archive begins with.
func (x *extractor) begin() error {
	h, err := x.read()
	if err != nil {
		return err
	}
	value, ok := h.PAXRecords[sizeRecord]
	if total, err := strconv.ParseInt(value, 10, 64); ok && err == nil && h.Typeflag == tar.TypeXGlobalHeader {
		x.total = max(total, 0)
		return nil
	}
	return fmt.Errorf("%w: it does not say how much is in it", ErrMalformed)
}

// next reads the next entry's header. It is nil at the archive's end.
func (x *extractor) next() (*tar.Header, error) {
	h, err := x.read()
	if err != nil {
		return nil, err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeXGlobalHeader:
		if _, ok := h.PAXRecords[endRecord]; ok {
			return nil, nil
		}
		return nil, fmt.Errorf("%w: an unknown record", ErrMalformed)
	default:
		return nil, fmt.Errorf("%w: %s is neither a file, a directory nor a link", ErrMalformed, display(h.Name))
	}
	for key := range h.PAXRecords {
		// These make much out of nothing.
		if strings.HasPrefix(key, "GNU.sparse.") {
			return nil, fmt.Errorf("%w: %s is sparse", ErrMalformed, display(h.Name))
		}
	}
	h.Name = strings.TrimSuffix(h.Name, "/")
	return h, nil
}

// end reads what follows the last entry, which is nothing but zeros.
func (x *extractor) end(r io.Reader) error {
	_, err := x.tar.Next()
	if errors.Is(err, io.EOF) {
		var n int64
		if n, err = io.CopyN(io.Discard, r, 1); n == 0 && errors.Is(err, io.EOF) {
			return nil
		}
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, tar.ErrHeader) {
		return err
	}
	return fmt.Errorf("%w: something follows its end", ErrMalformed)
}

// inside returns the path from base of an entry's name.
func (x *extractor) inside(name string) (string, error) {
	rest, ok := strings.CutPrefix(name, x.name+"/")
	if !ok || len(rest) > maxPath {
		return "", fmt.Errorf("%w: %s is not in %s", ErrMalformed, display(name[:min(len(name), maxPath)]), display(x.name))
	}
	for part := range strings.SplitSeq(rest, "/") {
		if !isName(part) {
			return "", fmt.Errorf("%w: %s is no name", ErrMalformed, display(name))
		}
	}
	return rest, nil
}

// isName tells whether a directory can have an entry of that name.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}
