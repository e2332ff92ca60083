// Package diskusage tells what files occupy on disk, and how much is left there.
package diskusage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Usage is what something occupies on disk, in bytes.
type Usage struct {
	Bytes int64
	// Shared of them are in files that others have too, under other names: removing one of them
	// alone does not free these.
	Shared int64
}

// Free returns how many bytes may be written to the filesystem of a directory.
func Free(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("find out how much space is left: %w", err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// Of returns how many bytes a file, or a directory with all that is in it, occupies. What vanishes
// meanwhile, or does not exist, occupies nothing.
func Of(path string) (int64, error) {
	u, err := Measure(path)
	return u.Bytes, err
}

// Measure returns what files, or directories with all that is in them, occupy together.
// What vanishes meanwhile, or does not exist, occupies nothing.
func Measure(paths ...string) (Usage, error) {
	var u Usage
	files := map[[2]uint64]*linked{}
	for _, path := range paths {
		if err := measure(path, &u, files); err != nil {
			return Usage{}, err
		}
	}
	for _, f := range files {
		u.Bytes += f.bytes
		if f.here < f.links {
			u.Shared += f.bytes
		}
	}
	return u, nil
}

// linked is a file with several names.
type linked struct {
	bytes       int64
	here, links uint64 // how many of its names were seen, and how many there are
}

// measure counts what is at path, but for files with several names, which it adds to files.
func measure(path string, u *Usage, files map[[2]uint64]*linked) error {
	return filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		const blockSize = 512 // the unit of st_blocks, whatever the filesystem's
		bytes := stat.Blocks * blockSize
		if d.IsDir() || stat.Nlink == 1 {
			u.Bytes += bytes
			return nil
		}
		key := [2]uint64{stat.Dev, stat.Ino}
		if files[key] == nil {
			files[key] = &linked{bytes: bytes, links: uint64(stat.Nlink)}
		}
		files[key].here++
		return nil
	})
}
