package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/sparse"
)

// idLength is how many hexadecimal digits of the hash name an image.
const idLength = 16

// identify returns the ID of the image in dir: a hash over its files and manifest.
func identify(ctx context.Context, dir string, manifest Manifest) (string, error) {
	sum := sha256.New()
	about, err := json.Marshal(manifest)
	if err != nil {
		return "", fmt.Errorf("identify image: %w", err)
	}
	sum.Write(about)
	files := []string{kernelFile, rootFSFile}
	for _, module := range manifest.Modules {
		files = append(files, filepath.Join(modulesDir, module))
	}
	for _, file := range files {
		if err := hashFile(ctx, sum, filepath.Join(dir, file)); err != nil {
			return "", fmt.Errorf("identify image: %w", err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:idLength], nil
}

func hashFile(ctx context.Context, sum hash.Hash, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	return sparse.Hash(ctx, sum, file)
}

// seal makes the files in dir readable by all and writable by nobody, and gets
// them onto the disk.
func seal(ctx context.Context, dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		perm := fs.FileMode(0o444)
		if d.IsDir() {
			perm = 0o755
		}
		if err := os.Chmod(path, perm); err != nil {
			return err
		}
		return syncPath(path)
	})
	if err != nil {
		return fmt.Errorf("write image to disk: %w", err)
	}
	return nil
}

// syncPath gets a file, or a directory's list of files, onto the disk.
func syncPath(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
