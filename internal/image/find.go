package image

import (
	"fmt"
	"os"
	"path/filepath"
)

// Find returns the image with that very ID, though the name may mean another by
// now. Its error wraps ErrNotFound if it is gone.
func (s *Store) Find(name, id string) (*Image, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	for _, dir := range s.dirs() {
		path := filepath.Join(dir, name, filepath.Base(id))
		if _, err := os.Stat(path); err == nil {
			return load(name, path)
		}
	}
	return nil, fmt.Errorf("%w: %q with ID %s, which the VM's disk is made on", ErrNotFound, name, id)
}
