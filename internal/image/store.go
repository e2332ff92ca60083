package image

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
)

// The layout of a store, in which the names of images are escaped as in URLs:
//
//	NAME/current      symbolic link to the directory of the image of that name
//	NAME/ID/          an image; its contents never change
//	NAME/lock         held by who builds or removes
//	NAME/.build-*/    a build or removal under way, or what a killed one left
//	.use              lock, held by who begins to use an image or removes one: see Acquire
//	.initrd/          initial filesystems, made from an image and a guest program
//	.blobs/           what container images of registries consist of, as it was fetched
const (
	currentLink = "current"
	lockFile    = "lock"
	buildPrefix = ".build-"
	useLock     = ".use"
)

// Store is a directory of images. Its methods may be called concurrently, by several
// processes too.
type Store struct {
	dir      string
	shared   []string
	log      *slog.Logger
	insecure bool
	source   Source // of images that are made of packages
	// kernelPackage is the package of the usual kernel, or empty.
	kernelPackage func() string
}

// Options say where a store is.
type Options struct {
	Dir    string   // needs not exist yet
	Shared []string // directories of other stores, which are only read, whose images are found too
	Log    *slog.Logger
	// Insecure allows plain HTTP, and TLS with any certificate, with all registries.
	Insecure bool
}

// NewStore returns a store.
func NewStore(opts Options) *Store {
	return &Store{
		dir: opts.Dir, shared: opts.Shared, log: opts.Log, insecure: opts.Insecure,
		source: newDebian(), kernelPackage: hostKernelPackage,
	}
}

// Get returns the image of that name: the store's own, or else a shared one. Its
// error wraps ErrInvalidName or ErrNotFound.
func (s *Store) Get(name string) (*Image, error) {
	name, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	for i, dir := range s.dirs() {
		img, err := current(name, filepath.Join(dir, dirName(name)))
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
