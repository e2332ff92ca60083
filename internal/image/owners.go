package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// When a user builds an image, mmdebstrap leaves the tree as an archive, since the user
// can't own files as root. It is unpacked as the user's own files; what belongs to others
// than root is noted in a file, and fakeroot makes mke2fs see that.

// ownersFile is that file in the job's directory. A line is "UID:GID MODE PATH".
const ownersFile = "owners"

// unpack unpacks the archive of the tree.
func (t *tree) unpack(ctx context.Context, archive string) error {
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return fmt.Errorf("unpack root filesystem: %w", err)
	}
	// A user can't make device files. The kernel provides them all in a machine.
	args := []string{"--extract", "--preserve-permissions", "--exclude=./dev/*", "--directory=" + t.dir, "--file=" + archive}
	if _, err := t.job.run(ctx, command{name: t.host.tools["tar"], args: args}); err != nil {
		return err
	}
	file, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("read owners of files: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	list, err := listOwners(file)
	if err != nil {
		return fmt.Errorf("read owners of files: %w", err)
	}
	if err := os.WriteFile(filepath.Join(t.job.Dir, ownersFile), list, 0o644); err != nil {
		return fmt.Errorf("note owners of files: %w", err)
	}
	return nil
}

// listOwners lists the files and directories in an archive that belong to others than root.
func listOwners(archive io.Reader) ([]byte, error) {
	var list strings.Builder
	for r := tar.NewReader(archive); ; {
		entry, err := r.Next()
		if errors.Is(err, io.EOF) {
			return []byte(list.String()), nil
		} else if err != nil {
			return nil, err
		}
		if entry.Uid == 0 && entry.Gid == 0 || entry.Typeflag != tar.TypeReg && entry.Typeflag != tar.TypeDir {
			continue
		}
		name := filepath.Clean(entry.Name)
		if !filepath.IsLocal(name) || strings.ContainsAny(name, "\n\\") {
			return nil, fmt.Errorf("unexpected name %q", entry.Name)
		}
		fmt.Fprintf(&list, "%d:%d %o %s\n", entry.Uid, entry.Gid, entry.Mode&0o7777, name)
	}
}

// ownerScript gives the files in the tree $1 the owners listed in the file $2, then runs
// the rest of its arguments. A change of the owner resets bits of the mode.
const ownerScript = `set -eu
cd "$1"
while read -r owner mode path; do
	if test -e "$path"; then
		chown "$owner" "./$path"
		chmod "$mode" "./$path"
	fi
done < "$2"
shift 2
exec "$@"
`

// pretendRoot runs a program that sees the tree's files as owned by whom they will be.
func (t *tree) pretendRoot(ctx context.Context, program string, args []string) error {
	script := []string{"--", "sh", "-c", ownerScript, "sh", t.dir, filepath.Join(t.job.Dir, ownersFile), program}
	_, err := t.job.run(ctx, command{name: t.host.tools["fakeroot"], args: append(script, args...)})
	return err
}
