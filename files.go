package smolvm

import (
	"bytes"
	"context"
	"io"
	"io/fs"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/transfer"
)

// CopyOption changes how [VM.CopyTo] and [VM.CopyFrom] copy.
type CopyOption = transfer.Option

// FollowLink copies what the source's symbolic link leads to, rather than the link. Links
// below the source stay links in any case.
func FollowLink() CopyOption { return transfer.FollowLink() }

// OnBytes is called as bytes are copied: done of total, where total is 0 as long as it is
// not known. Calls come one after the other.
func OnBytes(report func(done, total int64)) CopyOption { return transfer.OnBytes(report) }

// CopyTo copies a file or a directory of the host, with all below it, into the guest.
// Modes, times and symbolic links are kept; the copy belongs to the guest's root.
//
// If dst is a directory the copy goes into it under the name of src, unless src ends in
// "/.": then what src has in it goes into dst. If dst does not exist, the copy becomes dst,
// whose parent must exist. A relative dst counts from /root. A symbolic link that is src
// itself is copied as a link, unless [FollowLink] is given.
//
// It fails with fs.ErrNotExist if there is no src, or no parent of dst.
func (v *VM) CopyTo(ctx context.Context, src, dst string, opts ...CopyOption) error {
	return transfer.ToGuest(ctx, v.vm, src, dst, opts...)
}

// CopyFrom copies a file or a directory of the guest to the host, as [VM.CopyTo] does the
// other way round; the copy belongs to this user. Whatever the guest sends, nothing
// outside of dst is written.
func (v *VM) CopyFrom(ctx context.Context, src, dst string, opts ...CopyOption) error {
	return transfer.FromGuest(ctx, v.vm, src, dst, opts...)
}

// ReadFile returns the contents of a file in the guest.
func (v *VM) ReadFile(ctx context.Context, path string) ([]byte, error) {
	var contents bytes.Buffer
	err := v.ReadFileTo(ctx, path, &contents)
	return contents.Bytes(), err
}

// ReadFileTo writes the contents of a file in the guest to w.
func (v *VM) ReadFileTo(ctx context.Context, path string, w io.Writer) error {
	return v.vm.Files(ctx, guestapi.Files{Op: guestapi.FilesRead, Path: path}, nil, w)
}

// WriteFile makes a file in the guest with those contents, or replaces what is in it, whole
// or not at all. A file that is new gets the permissions.
func (v *VM) WriteFile(ctx context.Context, path string, contents []byte, perm fs.FileMode) error {
	return v.WriteFileFrom(ctx, path, bytes.NewReader(contents), perm)
}

// WriteFileFrom is [VM.WriteFile] with what r yields until its end.
func (v *VM) WriteFileFrom(ctx context.Context, path string, r io.Reader, perm fs.FileMode) error {
	op := guestapi.Files{Op: guestapi.FilesWrite, Path: path, Mode: uint32(perm.Perm())}
	return v.vm.Files(ctx, op, r, nil)
}
