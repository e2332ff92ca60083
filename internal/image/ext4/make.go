package ext4

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// MakeOptions say what filesystem to make.
type MakeOptions struct {
	Mke2fs string // path of the program
	Size   int64  // bytes
	Inodes int64  // at least so many, or as many as a filesystem of that size usually has
	Label  string // up to 16 bytes
}

// What mke2fs would take from chance and from the clock is always the same, so that the same
// contents make the same file, byte for byte.
const (
	uuid   = "5a6f1c5e-0b0d-4c6e-9d3a-736d6f6c766d"
	madeAt = "1" // seconds since 1970; mke2fs takes 0 for no time
)

// inodeRatio is how many bytes of a filesystem usually come to an inode.
const inodeRatio = 16384

// Make makes an empty filesystem in a new, sparse file. It leaves none if it fails.
func Make(ctx context.Context, path string, opts MakeOptions) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make file for filesystem: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := errors.Join(file.Truncate(opts.Size), file.Close()); err != nil {
		return fmt.Errorf("make file for filesystem: %w", err)
	}
	return OnHoles(func(extended string) error { return opts.run(ctx, path, extended) })
}

// OnHoles runs mke2fs on a file that is nothing but a hole, with what it is to be told of that by -E.
// The kernel of a machine would otherwise write zeroes over all inode tables in the background, and
// so fill every disk with them. Older versions know only a slower option, and are run twice.
func OnHoles(mke2fs func(extended string) error) error {
	const option = "assume_storage_prezeroed"
	err := mke2fs(option + "=1")
	if err != nil && strings.Contains(err.Error(), option) {
		err = mke2fs("lazy_itable_init=0,lazy_journal_init=0")
	}
	return err
}

func (o *MakeOptions) run(ctx context.Context, path, extended string) error {
	// Nothing is reserved for root: everyone in a machine is.
	args := []string{"-q", "-F", "-t", "ext4", "-m", "0", "-L", o.Label, "-U", uuid, "-E", extended + ",hash_seed=" + uuid,
		"-b", strconv.Itoa(BlockSize), "-I", strconv.Itoa(InodeSize), "-O", Features}
	if o.Inodes > o.Size/inodeRatio {
		args = append(args, "-N", strconv.FormatInt(o.Inodes, 10))
	} else {
		args = append(args, "-i", strconv.Itoa(inodeRatio))
	}
	cmd := exec.CommandContext(ctx, o.Mke2fs, append(args, path)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "E2FSPROGS_FAKE_TIME="+madeAt)
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && strings.Contains(strings.ToLower(string(out)), syscall.ENOSPC.Error()):
		return fmt.Errorf("make filesystem %s: %w", path, syscall.ENOSPC)
	case err != nil:
		return fmt.Errorf("make filesystem with %s: %w: %s", o.Mke2fs, err, strings.TrimSpace(string(out)))
	}
	return nil
}
