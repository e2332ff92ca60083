package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A build by a user has its scratch directory outside of the store, because the
// identities that mmdebstrap works under can't reach into the user's home. A link in the build
// directory says where, so that it is found when the build was killed.
const (
	scratchLink   = "scratch"
	scratchPrefix = "smolvm-build-"
)

// scratch makes a directory for temporary files that programs can reach which run under
// other identities than the caller's.
func (j *Job) scratch() (string, error) {
	dir := filepath.Join(j.Dir, scratchLink)
	if os.Geteuid() != 0 {
		link := dir
		dir = filepath.Join(os.TempDir(), scratchPrefix+rand.Text())
		// First the link: a directory without one would never be found again.
		if err := os.Symlink(dir, link); err != nil {
			return "", err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755) // whatever the umask is
}

// sweep removes what builds left in home. The caller has the lock, so no build is
// under way.
func (s *Store) sweep(ctx context.Context, home string) {
	entries, err := os.ReadDir(home)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), buildPrefix) {
			err = errors.Join(err, removeBuild(ctx, filepath.Join(home, e.Name())))
		}
	}
	if err != nil {
		s.log.Warn("remains of an image build were not removed", "error", err)
	}
}

// removeBuild removes a build directory and its scratch directory, if nothing is
// mounted in them.
func removeBuild(ctx context.Context, dir string) error {
	if info, err := os.Lstat(dir); err == nil && !info.IsDir() {
		return os.Remove(dir)
	}
	link := filepath.Join(dir, scratchLink)
	if target, err := os.Readlink(link); err == nil {
		if err := removeScratch(ctx, target); err != nil {
			return err
		}
	}
	return removeTree(dir)
}

// removeScratch removes a user's scratch directory. Files in it may belong to the
// user's subordinate identities, which only they can remove.
func removeScratch(ctx context.Context, dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || !strings.HasPrefix(filepath.Base(dir), scratchPrefix) {
		return fmt.Errorf("remove scratch directory: %s is none of ours", dir)
	}
	if err := removeTree(dir); err == nil {
		return nil
	}
	helper, err := findTool("mmdebstrap")
	if err != nil {
		return err
	}
	// The directory itself is the user's. Everything below may not be.
	rm := exec.CommandContext(ctx, helper, "--unshare-helper", "find", dir, "-xdev", "-mindepth", "1", "-delete")
	rm.Dir = "/"
	rm.Env = append(os.Environ(), "PATH="+toolPath())
	if output, err := rm.CombinedOutput(); err != nil {
		// What remains is the user's own, or removeTree tells.
		return errors.Join(removeTree(dir), fmt.Errorf("remove scratch directory: %w: %s", err, strings.TrimSpace(string(output))))
	}
	return removeTree(dir)
}

// removeTree removes dir with everything in it, or nothing if something is mounted there.
func removeTree(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("remove %s: something is mounted at %s: unmount it first", dir, strings.Join(mounts, ", "))
	}
	return os.RemoveAll(dir)
}

// mountsBelow returns where something is mounted at or below dir.
func mountsBelow(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var below []string
	for _, mount := range parseMounts(table) {
		if mount == dir || strings.HasPrefix(mount, dir+"/") {
			below = append(below, mount)
		}
	}
	return below, nil
}

// parseMounts returns the mount points in the contents of a mountinfo file.
func parseMounts(table []byte) []string {
	var points []string
	for line := range strings.Lines(string(table)) {
		const pointField = 4
		if fields := strings.Fields(line); len(fields) > pointField {
			points = append(points, unescapeOctal(fields[pointField]))
		}
	}
	return points
}

// unescapeOctal undoes the \040 that the kernel writes for spaces and the like.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if code, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
