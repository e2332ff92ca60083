package blob

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
)

// Reader reads a blob, and says at its end whether it was what the digest says.
type Reader struct {
	file   *os.File
	digest Digest
	sum    hash.Hash
}

// Open opens a blob for reading. It fails with ErrNotFound if it is not there.
func (s *Store) Open(d Digest) (*Reader, error) {
	file, err := os.Open(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, d)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return &Reader{file: file, digest: d, sum: d.hash()}, nil
}

// Read is io.Reader's. In place of io.EOF it returns ErrDamaged if what was read is not what the
// digest says.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.file.Read(p)
	r.sum.Write(p[:n])
	if err == io.EOF && !r.digest.is(r.sum) {
		err = fmt.Errorf("%w: %s", ErrDamaged, r.digest)
	}
	return n, err
}

// Close closes the file.
func (r *Reader) Close() error { return r.file.Close() }

// Verify reads a blob and, if it is damaged, removes it, so that it is fetched again, and fails
// with ErrDamaged.
func (s *Store) Verify(ctx context.Context, d Digest) error {
	r, err := s.Open(d)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err = copyTo(ctx, io.Discard, r); errors.Is(err, ErrDamaged) {
		err = errors.Join(err, s.discard(ctx, d, r.file))
	}
	if err != nil {
		return fmt.Errorf("verify blob: %w", err)
	}
	return nil
}

// CheckSize removes a blob that is not of the size that it must have, so that it is fetched again.
// It does nothing if it is not there.
func (s *Store) CheckSize(ctx context.Context, d Digest, size int64) error {
	file, err := os.Open(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check blob: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	info, err := file.Stat()
	if err == nil && info.Size() != size {
		err = s.discard(ctx, d, file)
	}
	if err != nil {
		return fmt.Errorf("check blob: %w", err)
	}
	return nil
}

// discard removes the blob that is open as file, unless another one is in its place by now.
func (s *Store) discard(ctx context.Context, d Digest, file *os.File) (err error) {
	// Nobody puts a new one there without this lock.
	lock, err := s.lockPartial(ctx, d, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlockPartial(lock)) }()
	damaged, err := file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !os.SameFile(damaged, there) {
		return err
	}
	return os.Remove(s.path(d))
}
