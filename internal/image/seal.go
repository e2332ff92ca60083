package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
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

// hashFile adds a file: its length, and each block that is not all zero with its
// number. Holes are not read: a root filesystem is nearly nothing else.
func hashFile(ctx context.Context, sum hash.Hash, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	info, err := file.Stat()
	if err != nil {
		return err
	}
	const blockSize = 64 << 10
	block, zero := make([]byte, blockSize), make([]byte, blockSize)
	number := func(n int64) { sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(n))) }
	number(info.Size())
	for at := int64(0); at < info.Size(); at += blockSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		} else if err != nil {
			return fmt.Errorf("find data in %s: %w", path, err)
		}
		at = data - data%blockSize
		n, err := file.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(block[:n], zero[:n]) {
			number(at)
			sum.Write(block[:n])
		}
	}
	return nil
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
