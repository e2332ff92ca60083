package image

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Version is one of the images that a name means or has meant.
type Version struct {
	*Image
	// Current tells that the name means this one now: it is what Get returns.
	Current bool
	// Err says why the image cannot be used. Then only its Name, ID, Dir, RootFS and Shared
	// are set.
	Err error
}

// List returns all versions of all images by name, of each name the current one first and
// newer ones before older ones. Of a version that several stores have it returns the one that
// Find does.
func (s *Store) List() ([]Version, error) {
	var list []Version
	for i, dir := range s.dirs() {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, e := range entries {
			name, err := nameOfDir(e.Name())
			if err != nil {
				continue
			}
			for _, v := range versions(name, filepath.Join(dir, e.Name())) {
				v.Shared = i > 0
				known := func(have Version) bool { return have.Name == v.Name && have.ID == v.ID }
				if !slices.ContainsFunc(list, known) {
					list = append(list, v)
				}
			}
		}
	}
	s.markCurrent(list)
	slices.SortStableFunc(list, func(a, b Version) int {
		switch {
		case a.Name != b.Name:
			return strings.Compare(a.Name, b.Name)
		case a.Current != b.Current && a.Current:
			return -1
		case a.Current != b.Current:
			return 1
		}
		return newerFirst(a, b)
	})
	return list, nil
}

// versions returns the images in the directory of a name, newer ones first.
func versions(name, dir string) []Version {
	// Where nobody may look, there is nothing to be used.
	entries, _ := os.ReadDir(dir) //nolint:errcheck // see above
	var list []Version
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		img, err := load(name, path)
		if err != nil {
			img = &Image{Name: name, ID: e.Name(), Dir: path, RootFS: filepath.Join(path, rootFSFile)}
		}
		list = append(list, Version{Image: img, Err: err})
	}
	slices.SortStableFunc(list, newerFirst)
	return list
}

func newerFirst(a, b Version) int {
	return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
}

// markCurrent marks the versions that their names mean.
func (s *Store) markCurrent(list []Version) {
	meant := map[string]string{}
	for i, v := range list {
		dir, asked := meant[v.Name]
		if !asked {
			if img, err := s.Get(v.Name); err == nil {
				dir = img.Dir
			}
			meant[v.Name] = dir
		}
		list[i].Current = v.Dir == dir
	}
}
