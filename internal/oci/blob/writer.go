package blob

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/filelock"
)

// ErrDigest is wrapped by errors about content that is not what its digest says.
var ErrDigest = errors.New("content does not match its digest")

// bufferSize is how much is read at once.
const bufferSize = 128 << 10

// Writer writes one blob, which nobody else does meanwhile. It is not for use by many goroutines.
type Writer struct {
	store  *Store
	digest Digest
	lock   *filelock.Lock
	file   *os.File
	sum    hash.Hash
	size   int64
}

// Begin makes the caller the one who writes a blob. While another process does, it waits; waiting,
// if it is not nil, is called once before. The Writer is nil if the blob is there by then. The
// caller has a Hold. What was written before stays: see Writer.Resume.
func (s *Store) Begin(ctx context.Context, d Digest, waiting func()) (*Writer, error) {
	if s.Has(d) {
		return nil, nil
	}
	lock, err := s.lockPartial(ctx, d, waiting)
	if err != nil {
		return nil, fmt.Errorf("begin blob: %w", err)
	}
	if s.Has(d) {
		// The one who had the lock before has renamed its file.
		return nil, unlockPartial(lock)
	}
	file, err := os.OpenFile(lock.Path(), os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin blob: %w", err), unlockPartial(lock))
	}
	return &Writer{store: s, digest: d, lock: lock, file: file, sum: d.hash()}, nil
}

// lockPartial takes the lock of the partial file of a blob, and makes the file if there is none.
func (s *Store) lockPartial(ctx context.Context, d Digest, waiting func()) (*filelock.Lock, error) {
	path := s.partialPath(d)
	for {
		lock, err := filelock.Try(path)
		if errors.Is(err, filelock.ErrHeld) {
			if waiting != nil {
				waiting()
				waiting = nil
			}
			lock, err = filelock.Take(ctx, path)
		}
		if err != nil {
			return nil, err
		}
		current, err := lock.Current()
		if current {
			return lock, nil
		}
		// The one who had it before has renamed the file, or removed it.
		if err := errors.Join(err, lock.Close()); err != nil {
			return nil, err
		}
	}
}

// unlockPartial lets the lock of a partial file go, and removes the file if it is empty.
func unlockPartial(lock *filelock.Lock) error {
	var err error
	if info, serr := os.Stat(lock.Path()); serr == nil && info.Size() == 0 {
		if current, cerr := lock.Current(); cerr == nil && current {
			err = os.Remove(lock.Path())
		}
	}
	return errors.Join(err, lock.Close())
}

// Resume reads what was written before, and returns how many bytes that is. If it is more than
// size, it is worth nothing, and is dropped.
func (w *Writer) Resume(ctx context.Context, size int64) (int64, error) {
	info, err := w.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("resume blob: %w", err)
	}
	if info.Size() > size {
		return 0, w.Reset()
	}
	w.sum.Reset()
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("resume blob: %w", err)
	}
	if w.size, err = copyTo(ctx, w.sum, w.file); err != nil {
		return 0, fmt.Errorf("resume blob: %w", err)
	}
	return w.size, nil
}

// Size is how many bytes were written, including those that Resume found.
func (w *Writer) Size() int64 { return w.size }

// Reset drops what was written.
func (w *Writer) Reset() error {
	w.size = 0
	w.sum.Reset()
	_, err := w.file.Seek(0, io.SeekStart)
	if err := errors.Join(err, w.file.Truncate(0)); err != nil {
		return fmt.Errorf("start blob anew: %w", err)
	}
	return nil
}

// Write appends to what is there.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.size += int64(n)
	w.sum.Write(p[:n])
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	return n, nil
}

// Commit makes what was written a blob. If it is not what the digest says, it fails with
// ErrDigest, and what was written is dropped.
func (w *Writer) Commit() error {
	if !w.digest.is(w.sum) {
		return errors.Join(fmt.Errorf("%w: %s", ErrDigest, w.digest), w.Reset())
	}
	path := w.store.path(w.digest)
	err := w.file.Sync()
	if err == nil {
		err = os.Rename(w.file.Name(), path)
	}
	if err == nil {
		// Not before: nobody could go on with a partial file that is read-only.
		err = errors.Join(w.file.Chmod(0o400), syncDir(filepath.Dir(path)))
	}
	if err != nil {
		return fmt.Errorf("keep blob: %w", err)
	}
	return nil
}

// Close lets others write the blob. What was written and not committed stays for the next Writer.
func (w *Writer) Close() error { return errors.Join(w.file.Close(), unlockPartial(w.lock)) }

// Put writes data as a blob unless it is there. It fails with ErrDigest if it is another one.
func (s *Store) Put(ctx context.Context, d Digest, data []byte) (err error) {
	if !d.Matches(data) {
		return fmt.Errorf("%w: %s", ErrDigest, d)
	}
	w, err := s.Begin(ctx, d, nil)
	if w == nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.Reset(); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit()
}

// copyTo copies until the end of r or of ctx.
func copyTo(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	buffer := make([]byte, bufferSize)
	total := int64(0)
	for ctx.Err() == nil {
		n, err := r.Read(buffer)
		if _, err := w.Write(buffer[:n]); err != nil {
			return total, err
		}
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, ctx.Err()
}

// syncDir gets a directory's list of files onto the disk.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
