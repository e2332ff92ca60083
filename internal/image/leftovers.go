package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

// Leftover is something in the store that no image needs.
type Leftover struct {
	Path  string // within the store
	Bytes int64  // on disk
}

// initrdInUse is how long after it was asked for an initial filesystem may still be on its
// way into a machine.
const initrdInUse = 10 * time.Minute

// Clean removes what no image needs: initial filesystems that are not made from one of the
// images and this guest program, what killed builds left, and what was fetched from registries.
// The images that are gone, or as good as gone, are doomed. With dryRun it only tells. Of what
// cannot be removed it tells in the error.
func (s *Store) Clean(ctx context.Context, guest *io.SectionReader, doomed []Version, dryRun bool) ([]Leftover, error) {
	remains, err := s.cleanBuilds(ctx, dryRun)
	initrds, err2 := s.cleanInitrds(ctx, guest, doomed, dryRun)
	blobs, err3 := s.cleanBlobs(ctx, dryRun)
	return slices.Concat(remains, initrds, blobs), errors.Join(err, err2, err3)
}

// cleanBlobs removes what was fetched from registries, unless somebody is at it.
func (s *Store) cleanBlobs(ctx context.Context, dryRun bool) ([]Leftover, error) {
	if _, err := os.Stat(filepath.Join(s.dir, registryBlobs)); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	cache, err := s.blobs()
	if err != nil {
		return nil, err
	}
	usage, err := cache.Usage()
	bytes := usage.Bytes + usage.Partial
	if err == nil && !dryRun {
		bytes, err = cache.Prune(ctx, func(blob.Digest) bool { return false })
	}
	switch {
	case errors.Is(err, blob.ErrBusy):
		return nil, nil
	case err != nil || bytes == 0:
		return nil, err
	}
	return []Leftover{{Path: registryBlobs, Bytes: bytes}}, nil
}

// cleanBuilds removes what killed builds left, except where one is under way.
func (s *Store) cleanBuilds(ctx context.Context, dryRun bool) ([]Leftover, error) {
	homes, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("find remains of builds: %w", err)
	}
	var (
		left []Leftover
		errs []error
	)
	for _, h := range homes {
		name, err := nameOfDir(h.Name())
		if err != nil {
			continue
		}
		remains, err := s.cleanHome(ctx, name, dryRun)
		left, errs = append(left, remains...), append(errs, err)
	}
	return left, errors.Join(errs...)
}

// cleanHome removes what killed builds left in the directory of a name.
func (s *Store) cleanHome(ctx context.Context, name string, dryRun bool) ([]Leftover, error) {
	dir := filepath.Join(s.dir, dirName(name))
	h, err := tryEnter(dir, name)
	if errors.Is(err, errBusy) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("find remains of builds: %w", err)
	}
	defer h.leave()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("find remains of builds: %w", err)
	}
	var (
		left []Leftover
		errs []error
	)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), buildPrefix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		size, err := diskusage.Of(path)
		if err == nil && !dryRun {
			err = removeBuild(ctx, path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove remains of a build: %w", err))
			continue
		}
		left = append(left, Leftover{Path: filepath.Join(dirName(name), e.Name()), Bytes: size})
	}
	return left, errors.Join(errs...)
}

// cleanInitrds removes initial filesystems that no image needs.
func (s *Store) cleanInitrds(ctx context.Context, guest *io.SectionReader, doomed []Version, dryRun bool) ([]Leftover, error) {
	dir := filepath.Join(s.dir, initrdDir)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	images, err := s.List()
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for _, v := range images {
		if !slices.ContainsFunc(doomed, func(d Version) bool { return d.Dir == v.Dir }) {
			key, err := initrdKey(v.Image, guest)
			if err != nil {
				return nil, err
			}
			needed[key+initrdSuffix] = true
		}
	}
	lock, err := lock(ctx, filepath.Join(dir, lockFile), exclusive, nil)
	if err != nil {
		return nil, fmt.Errorf("remove initrds: %w", err)
	}
	defer lock.Close() //nolint:errcheck // nothing was written to it
	since := time.Now().Add(-initrdInUse)
	names, err := findInitrds(dir, func(name string, used time.Time) bool { return needed[name] || used.After(since) })
	if err != nil {
		return nil, err
	}
	var (
		left []Leftover
		errs []error
	)
	for _, name := range names {
		path := filepath.Join(dir, name)
		size, err := diskusage.Of(path)
		if err == nil && !dryRun {
			err = os.Remove(path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove initrd: %w", err))
			continue
		}
		left = append(left, Leftover{Path: filepath.Join(initrdDir, name), Bytes: size})
	}
	return left, errors.Join(errs...)
}
