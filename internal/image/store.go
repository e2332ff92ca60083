package image

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
)

// The layout of a store:
//
//	NAME/current      symbolic link to the directory of the image of that name
//	NAME/ID/          an image; its contents never change
//	NAME/lock         held by who builds or removes
//	NAME/.build-*/    a build or removal under way, or what a killed one left
//	.use              lock, held by who begins to use an image or removes one: see Acquire
//	.initrd/          initial filesystems, made from an image and a guest program
const (
	currentLink = "current"
	lockFile    = "lock"
	buildPrefix = ".build-"
	useLock     = ".use"
)

// Store is a directory of images. Its methods may be called concurrently, by several
// processes too.
type Store struct {
	dir    string
	shared []string
	log    *slog.Logger
	source Source // of images that are made of packages
}

// NewStore returns the store in dir, which needs not exist yet. The images in the
// shared directories, other stores that are only read, are found too.
func NewStore(dir string, shared []string, log *slog.Logger) *Store {
	return &Store{dir: dir, shared: shared, log: log, source: newDebian()}
}

// Get returns the image of that name: the store's own, or else a shared one. Its
// error wraps ErrInvalidName or ErrNotFound.
func (s *Store) Get(name string) (*Image, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	for i, dir := range s.dirs() {
		img, err := current(name, filepath.Join(dir, name))
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		img.Shared = i > 0
		return img, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNotFound, name)
}

// dirs are the directories to search, in order: the store's own, then the shared ones.
func (s *Store) dirs() []string {
	dirs := append([]string{s.dir}, s.shared...)
	for i, dir := range dirs {
		if abs, err := filepath.Abs(dir); err == nil {
			dirs[i] = abs
		}
	}
	return slices.Compact(dirs)
}

// current returns the image that the link in the directory of a name points to.
func current(name, dir string) (*Image, error) {
	id, err := os.Readlink(filepath.Join(dir, currentLink))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, name)
	} else if err != nil {
		return nil, fmt.Errorf("find image %q: %w", name, err)
	}
	img, err := load(name, filepath.Join(dir, filepath.Base(id)))
	if errors.Is(err, errIncomplete) {
		return nil, fmt.Errorf("%w: %q: %w", ErrNotFound, name, err)
	}
	return img, err
}
