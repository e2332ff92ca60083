package image

import (
	"fmt"
	"os"
	"path/filepath"
)

// Find returns the image with that very ID, though the name may mean another by
// now. Its error wraps ErrNotFound if it is gone.
func (s *Store) Find(name, id string) (*Image, error) {
	name, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	for i, dir := range s.dirs() {
		path := filepath.Join(dir, dirName(name), filepath.Base(id))
		if _, err := os.Stat(path); err != nil {
			continue
		}
		img, err := load(name, path)
		if err != nil {
			return nil, err
		}
		img.Shared = i > 0
		return img, nil
	}
	return nil, fmt.Errorf("%w: %q with ID %s, which the VM's disk is made on", ErrNotFound, name, id)
}
