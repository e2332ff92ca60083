package rootfs

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// layerReader reads the entries of a layer, one after the other.
type layerReader struct {
	ctx    context.Context
	source *source
	tar    *tar.Reader
	plain  *readAhead
	sum    hash.Hash
	entry  string // its name, as the layer says it
	files  int64  // how many bytes there may still be in files
	limit  int64  // how many there might be in the beginning
	left   int64  // how many bytes may be read of the archive before the next entry
	some   bool   // whether anything was read
	bad    error  // why the contents could not be read
	over   error  // why no more may be
}

// What a layer may have besides the contents of its files, in bytes.
const (
	perEntry = 16 << 10 // for each entry
	perLayer = 8 << 20  // for all, and for the padding at the end
)

// openLayer opens a layer with at most so many bytes in its files.
func openLayer(ctx context.Context, s *source, limit int64, count *counter) (*layerReader, error) {
	if err := checkDigest(s.digest); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	stored, err := s.Open()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.Name, err)
	}
	r := &layerReader{
		ctx: ctx, source: s, plain: newReadAhead(ctx, stored, count), sum: sha256.New(),
		files: limit, limit: limit, left: perLayer,
	}
	r.tar = tar.NewReader(r)
	return r, nil
}

// close ends all that reads the layer.
func (r *layerReader) close() { r.plain.close() }

// Read reads the archive, for r.tar.
func (r *layerReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.left <= 0 {
		r.over = tooLarge("there is more in it than its entries say")
		return 0, r.over
	}
	n, err := r.plain.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.some = r.some || n > 0
	r.sum.Write(p[:n])
	return n, err
}

// next returns the next entry. At the end the error is io.EOF.
func (r *layerReader) next() (*tar.Header, error) {
	r.left += perEntry
	h, err := r.tar.Next()
	switch {
	case errors.Is(err, tar.ErrInsecurePath): // others judge that
	case errors.Is(err, io.EOF) && r.plain.failure() == nil:
		if !r.some {
			return nil, r.failed(malformed("nothing is in it"))
		}
		return nil, io.EOF
	case err != nil:
		return nil, r.broken(err)
	}
	r.entry = h.Name
	switch {
	case !hasContents(h): // whatever its size is
	case h.Size < 0:
		return nil, r.failed(malformed("it has %d bytes", h.Size))
	case h.Size > r.files:
		return nil, r.failed(tooLarge("its files have more than %d bytes", r.limit))
	default:
		r.files -= h.Size
		r.left += h.Size
	}
	return h, nil
}

// hasContents tells whether an entry is a file.
func hasContents(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeCont || h.Typeflag == tar.TypeGNUSparse
}

// read reads the beginning of the entry's contents.
func (r *layerReader) read(p []byte) error {
	if _, err := io.ReadFull(r.tar, p); err != nil {
		return r.broken(err)
	}
	return nil
}

// contents returns a reader of the entry's contents, for who reports its errors to contentsFailed.
func (r *layerReader) contents() io.Reader {
	r.bad = nil
	return contentsReader{r}
}

type contentsReader struct{ *layerReader }

func (c contentsReader) Read(p []byte) (int, error) {
	n, err := c.tar.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		c.bad = err
	}
	return n, err
}

// contentsFailed says why contents could not be used, for which the layer may be to blame, or not.
func (r *layerReader) contentsFailed(err error) error {
	if r.bad != nil {
		return r.broken(r.bad)
	}
	return r.failed(err)
}

// finish reads what is behind the last entry, and returns the digest of all.
func (r *layerReader) finish() (string, error) {
	r.entry = ""
	if _, err := io.Copy(io.Discard, r); err != nil {
		return "", r.broken(err)
	}
	digest := digestPrefix + hex.EncodeToString(r.sum.Sum(nil))
	if r.source.digest != "" && digest != r.source.digest {
		return "", r.failed(fmt.Errorf("%w: it is %s, not %s", ErrDigest, digest, r.source.digest))
	}
	return digest, nil
}

// broken says why the archive could not be read: the layer is to blame unless what it is
// read from is, or the caller wants no more.
func (r *layerReader) broken(err error) error {
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case r.over != nil:
		return r.failed(r.over)
	case errors.Is(err, ErrTooLarge):
		return r.failed(err)
	case r.plain.failure() != nil:
		return r.failed(r.plain.failure())
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return r.failed(malformed("it is cut short"))
	}
	return r.failed(malformed("%w", err))
}

// failed says for which entry of which layer something failed.
func (r *layerReader) failed(err error) error {
	if r.entry == "" {
		return fmt.Errorf("%s: %w", r.source.Name, err)
	}
	return fmt.Errorf("%s: "+shown+": %w", r.source.Name, r.entry, err)
}

const digestPrefix = "sha256:"

// checkDigest tells whether a digest is one, or none.
func checkDigest(digest string) error {
	if digest == "" {
		return nil
	}
	sum, err := hex.DecodeString(digest[min(len(digestPrefix), len(digest)):])
	if err != nil || digest != digestPrefix+hex.EncodeToString(sum) || len(sum) != sha256.Size {
		return fmt.Errorf("%w: "+shown+" is none", ErrDigest, digest)
	}
	return nil
}
