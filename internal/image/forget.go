package image

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path"
	"syscall"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// forget takes out of a VM's tree what makes it this VM and no other, and what lasts only as long
// as it runs: the reverse of what the guest program does with an identity, and what configure does
// for a tree of packages.
func forget(ctx context.Context, tree *rootfs.Tree) error {
	f := forgetter{ctx: ctx, tree: tree}
	f.below("tmp", "run", "dev")
	f.remove("etc/ssh", "ssh_host_*")
	f.remove("var/lib/dbus", "machine-id")
	f.remove("var/lib/systemd", "random-seed")
	f.change("etc/machine-id", nothing)
	f.change("etc/hostname", nothing)
	f.change("etc/resolv.conf", nothing)
	f.change("etc/hosts", withoutMarked)
	return f.err
}

func nothing([]byte) []byte { return nil }

// withoutMarked leaves out the lines that are of one guest alone.
func withoutMarked(hosts []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(hosts) {
		if !bytes.HasSuffix(bytes.TrimRight(line, "\n"), []byte(guestapi.HostsMark)) {
			kept = append(kept, line...)
		}
	}
	return kept
}

// forgetter changes a tree. What is not there, or leads nowhere, stays so. The first error sticks.
type forgetter struct {
	ctx  context.Context
	tree *rootfs.Tree
	err  error
}

func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

func (f *forgetter) note(err error) {
	if f.err == nil && err != nil && !isAbsent(err) {
		f.err = err
	}
}

func (f *forgetter) below(dirs ...string) {
	for _, dir := range dirs {
		if f.err == nil {
			f.note(f.tree.RemoveBelow(dir))
		}
	}
}

// remove removes the files of a directory whose names match a pattern.
func (f *forgetter) remove(dir, pattern string) {
	if f.err != nil {
		return
	}
	names, err := f.tree.ReadDir(dir)
	f.note(err)
	for _, name := range names {
		matches, err := path.Match(pattern, name)
		f.note(err)
		if info, err := f.tree.LookupLink(path.Join(dir, name)); matches && err == nil && info.IsRegular() && f.err == nil {
			f.note(f.tree.Remove(path.Join(dir, name)))
		}
	}
}

// change changes what a regular file holds.
func (f *forgetter) change(name string, how func([]byte) []byte) {
	if f.err != nil {
		return
	}
	info, err := f.tree.LookupLink(name)
	if err != nil || !info.IsRegular() {
		f.note(err)
		return
	}
	data, err := f.tree.ReadFile(f.ctx, name)
	if f.note(err); err != nil {
		return
	}
	f.note(f.tree.WriteFile(name, info.Mode, how(data)))
}
