package image

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The layout of a store:
//
//	NAME/current      symbolic link to the directory of the image of that name
//	NAME/ID/          an image; its contents never change
//	NAME/lock         held by who builds
//	NAME/.build-*/    a build under way, or what a killed one left
//	.initrd/          initial filesystems, made from an image and a guest program
const (
	currentLink = "current"
	lockFile    = "lock"
	buildPrefix = ".build-"
)

// Store is a directory of images. Its methods may be called concurrently, by several
// processes too.
type Store struct {
	dir     string
	shared  []string
	log     *slog.Logger
	sources map[string]Source
}

// NewStore returns the store in dir, which needs not exist yet. The images in the
// shared directories, other stores that are only read, are found too.
func NewStore(dir string, shared []string, log *slog.Logger) *Store {
	return &Store{dir: dir, shared: shared, log: log, sources: map[string]Source{Default: newDebian()}}
}

// Get returns the image of that name: the store's own, or else a shared one. Its
// error wraps ErrInvalidName or ErrNotFound.
func (s *Store) Get(name string) (*Image, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	for _, dir := range s.dirs() {
		img, err := current(name, filepath.Join(dir, name))
		if err == nil || !errors.Is(err, ErrNotFound) {
			return img, err
		}
	}
	return nil, fmt.Errorf("%w: %q", ErrNotFound, name)
}

// dirs are the directories to search, in order.
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

// List returns all images, by name. Of a name that several stores have it returns
// the one that Get returns. Images that cannot be read are left out and their
// errors joined.
func (s *Store) List() ([]*Image, error) {
	names := map[string]bool{}
	for _, dir := range s.dirs() {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, e := range entries {
			if CheckName(e.Name()) == nil {
				names[e.Name()] = true
			}
		}
	}
	var (
		images   []*Image
		failures []error
	)
	for name := range names {
		img, err := s.Get(name)
		switch {
		case err == nil:
			images = append(images, img)
		case !errors.Is(err, ErrNotFound):
			failures = append(failures, err)
		}
	}
	slices.SortFunc(images, func(a, b *Image) int { return strings.Compare(a.Name, b.Name) })
	return images, errors.Join(failures...)
}
