// Package blob keeps content by its digest: what images are made of, as it was fetched.
//
// A [Store] is a directory that many processes use at once:
//
//	blobs/sha256/HEX    whole, verified when they were written, and read-only
//	partial/sha256-HEX  what has come so far of those that are being fetched, or were
//	lock                shared by those who count on blobs, had alone by who removes some
//
// The lock of a partial file makes one process fetch a blob that several want, while the others
// wait. It becomes the blob by a rename, so a blob is there in whole or not at all. What has come
// outlives the process, for the next one to go on from.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/filelock"
)

var (
	// ErrNotFound is wrapped by errors about a blob that is not in the store.
	ErrNotFound = errors.New("blob is not in the cache")
	// ErrDamaged is wrapped by errors about a blob in the store that is no longer what its
	// digest says.
	ErrDamaged = errors.New("blob in the cache is damaged")
	// ErrBusy is wrapped by errors about a store that others count on.
	ErrBusy = errors.New("images are being fetched or used")
)

const (
	blobsDir   = "blobs"
	partialDir = "partial"
	lockFile   = "lock"
)

// Store is a directory of blobs. Its methods may be called by many goroutines, and many processes
// may have the same one.
type Store struct{ dir string }

// Open makes the store in dir if there is none. Only its owner can read what is made.
func Open(dir string) (*Store, error) {
	for _, sub := range []string{filepath.Join(blobsDir, "sha256"), filepath.Join(blobsDir, "sha512"), partialDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open blob cache: %w", err)
		}
	}
	return &Store{dir}, nil
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(d Digest) string {
	return filepath.Join(s.dir, blobsDir, d.algorithm(), d.digits())
}

func (s *Store) partialPath(d Digest) string {
	return filepath.Join(s.dir, partialDir, d.algorithm()+"-"+d.digits())
}

// Has tells whether the blob is there. It does not read it.
func (s *Store) Has(d Digest) bool {
	_, err := s.Stat(d)
	return err == nil
}

// Stat tells how large the blob is. It fails with ErrNotFound if it is not there.
func (s *Store) Stat(d Digest) (Info, error) {
	info, err := os.Stat(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, fmt.Errorf("%w: %s", ErrNotFound, d)
	}
	if err != nil {
		return Info{}, fmt.Errorf("find blob: %w", err)
	}
	return Info{Digest: d, Size: info.Size()}, nil
}

// Info is what is known of a blob without reading it.
type Info struct {
	Digest Digest
	Size   int64 // bytes
}

// List returns the blobs that are there, sorted by digest.
func (s *Store) List() ([]Info, error) {
	var list []Info
	err := s.each(func(d Digest, info fs.FileInfo) { list = append(list, Info{d, info.Size()}) })
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return list, nil
}

// Usage is what a store holds.
type Usage struct {
	Blobs   int   // how many there are in whole
	Bytes   int64 // in these
	Partial int64 // bytes of others that were fetched in part, or are being fetched
}

// Usage tells how much is there.
func (s *Store) Usage() (Usage, error) {
	var u Usage
	err := s.each(func(_ Digest, info fs.FileInfo) {
		u.Blobs++
		u.Bytes += info.Size()
	})
	if err == nil {
		err = files(filepath.Join(s.dir, partialDir), func(info fs.FileInfo) { u.Partial += info.Size() })
	}
	if err != nil {
		return Usage{}, fmt.Errorf("measure blob cache: %w", err)
	}
	return u, nil
}

// each calls f for every blob. Files that are none are passed over.
func (s *Store) each(f func(Digest, fs.FileInfo)) error {
	for _, algorithm := range []string{"sha256", "sha512"} {
		err := files(filepath.Join(s.dir, blobsDir, algorithm), func(info fs.FileInfo) {
			if d, err := ParseDigest(algorithm + ":" + info.Name()); err == nil {
				f(d, info)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// files calls f for every regular file in dir. One that goes meanwhile does no harm.
func files(dir string, f func(fs.FileInfo)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			f(info)
		}
	}
	return nil
}

// Scratch returns an empty file in the store that has no name, and is gone when it is closed.
func (s *Store) Scratch() (*os.File, error) {
	file, err := os.CreateTemp(filepath.Join(s.dir, partialDir), "scratch-")
	if err != nil {
		return nil, fmt.Errorf("make scratch file: %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make scratch file: %w", err), file.Close())
	}
	return file, nil
}

// Hold is somebody's word that blobs are counted on.
type Hold struct{ lock *filelock.Lock }

// Hold keeps all blobs from being pruned until the Hold is closed, or the process ends. Many may
// have one. It waits while Prune is at work.
func (s *Store) Hold(ctx context.Context) (*Hold, error) {
	lock, err := filelock.TakeShared(ctx, filepath.Join(s.dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("hold blob cache: %w", err)
	}
	return &Hold{lock}, nil
}

// Close lets go.
func (h *Hold) Close() error { return h.lock.Close() }
