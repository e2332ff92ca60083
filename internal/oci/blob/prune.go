package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/filelock"
)

// Prune removes the blobs that keep does not want, and all that was fetched in part, and returns
// how many bytes that were. It fails with ErrBusy, and removes nothing, while anybody has a Hold,
// as every running pull does: so nobody loses a blob that he counts on. If ctx ends, what is
// removed by then is gone, and the rest stays.
func (s *Store) Prune(ctx context.Context, keep func(Digest) bool) (freed int64, err error) {
	lock, err := filelock.Try(filepath.Join(s.dir, lockFile))
	if errors.Is(err, filelock.ErrHeld) {
		return 0, fmt.Errorf("prune blob cache: %w", ErrBusy)
	}
	if err != nil {
		return 0, fmt.Errorf("prune blob cache: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	var failed []error
	remove := func(path string, size int64) {
		if ctx.Err() != nil {
			return
		}
		if err := os.Remove(path); err != nil {
			failed = append(failed, err)
			return
		}
		freed += size
	}
	failed = append(failed, s.each(func(d Digest, info fs.FileInfo) {
		if !keep(d) {
			remove(s.path(d), info.Size())
		}
	}))
	partial := filepath.Join(s.dir, partialDir)
	failed = append(failed, files(partial, func(info fs.FileInfo) {
		remove(filepath.Join(partial, info.Name()), info.Size())
	}))
	if err := errors.Join(append(failed, ctx.Err())...); err != nil {
		return freed, fmt.Errorf("prune blob cache: %w", err)
	}
	return freed, nil
}
