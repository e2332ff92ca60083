package network

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestDirectoryGoesMeanwhile makes a directory that another one removes again and again.
func TestDirectoryGoesMeanwhile(t *testing.T) {
	above := filepath.Join(t.TempDir(), "run")
	dir := filepath.Join(above, "net")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Remove(dir)
				_ = os.Remove(above)
			}
		}
	}()
	for range 5000 {
		if err := makeDir(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
			break
		}
	}
	close(stop)
	<-stopped
}

// TestNoDirectory: what will never be a directory is not waited for.
func TestNoDirectory(t *testing.T) {
	above := t.TempDir()
	file, link := filepath.Join(above, "file"), filepath.Join(above, "link")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Symlink("nowhere", link))
	for _, dir := range []string{file, filepath.Join(file, "net"), link} {
		if lock, err := lockDir(t.Context(), dir); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v, %v", dir, lock, err)
		}
	}
}
