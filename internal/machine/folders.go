package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/share"
	"github.com/smolvm/smolvm/internal/store"
)

// SharedFolder is a folder of the host that a guest has.
type SharedFolder = store.SharedFolder

const (
	// maxFolders is how many folders a VM may have.
	maxFolders = 16
	// maxFolderPath is the longest path of one, in bytes.
	maxFolderPath = 4095
	// folderTimeout bounds the wait for what a guest has asked for last.
	folderTimeout = 10 * time.Second
)

// completeFolders makes the paths of folders whole and checks them. They come in the order in which
// to mount them.
func completeFolders(given []SharedFolder) ([]SharedFolder, error) {
	if len(given) > maxFolders {
		return nil, fmt.Errorf("%w: a VM has at most %d shared folders, not %d", ErrInvalidOption, maxFolders, len(given))
	}
	all := slices.Clone(given)
	for i := range all {
		f := &all[i]
		if err := checkGuestPath(f.Guest); err != nil {
			return nil, err
		}
		f.Guest = filepath.Clean(f.Guest)
		var err error
		if f.Host == "" {
			return nil, fmt.Errorf("%w: the folder to be shared at %s has no path on the host", ErrInvalidOption, f.Guest)
		}
		if f.Host, err = filepath.Abs(f.Host); err != nil {
			return nil, fmt.Errorf("find shared folder: %w", err)
		}
		if slices.ContainsFunc(all[:i], func(other SharedFolder) bool { return other.Guest == f.Guest }) {
			return nil, fmt.Errorf("%w: two folders are to be shared at %s", ErrInvalidOption, f.Guest)
		}
	}
	// One that is within another comes behind it.
	slices.SortStableFunc(all, func(a, b SharedFolder) int { return strings.Compare(a.Guest, b.Guest) })
	return all, nil
}

// checkGuestPath tells whether a folder can be mounted at a path of the guest.
func checkGuestPath(path string) error {
	if !filepath.IsAbs(path) || len(path) > maxFolderPath || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w: the path of a shared folder in the guest must be absolute, not %q", ErrInvalidOption, path)
	}
	clean := filepath.Clean(path)
	for _, taken := range []string{"/proc", "/sys", "/dev"} {
		if clean == taken || strings.HasPrefix(clean, taken+"/") {
			return fmt.Errorf("%w: a folder cannot be shared at %s: what is in %s is the guest's kernel's", ErrInvalidOption, path, taken)
		}
	}
	if clean == "/" {
		return fmt.Errorf("%w: a folder cannot be shared at /, which is the VM's disk", ErrInvalidOption)
	}
	return nil
}

// checkFolders tells whether folders can be shared now.
func checkFolders(all []SharedFolder) error {
	for _, shared := range all {
		folder, err := share.Open(shared.Host, shared.ReadOnly)
		if err == nil {
			err = folder.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// folders are what a run of a VM has of the host.
type folders struct {
	image string // of the VM
	log   *slog.Logger
	all   []openFolder
	// begun tells that they were mounted before: from then on the guest is of use without one, too.
	// Only one goroutine at a time prepares links.
	begun bool
}

type openFolder struct {
	SharedFolder
	folder *share.Folder
}

// openFolders opens the folders of a VM, whose directory is given. The caller owes a close.
func openFolders(dir string, rec store.Record, log *slog.Logger) (*folders, error) {
	f := &folders{image: rec.Image, log: log}
	if err := mayShare(dir, rec); err != nil {
		return nil, err
	}
	for _, shared := range rec.Shares {
		if err := f.open(shared); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	return f, nil
}

// reopenFolders opens those of a VM that runs, whose owner has died, as far as that can be.
func reopenFolders(dir string, rec store.Record, log *slog.Logger) *folders {
	f := &folders{image: rec.Image, log: log, begun: true}
	notAllowed := mayShare(dir, rec)
	for _, shared := range rec.Shares {
		err := notAllowed
		if err == nil {
			err = f.open(shared)
		}
		if err != nil {
			log.Warn("a shared folder is missing in the guest until its next start", "path", shared.Guest, "error", err)
		}
	}
	return f
}

// mayShare tells whether this user may share the folders that a VM's record names. What is another
// user's VM would have them as that user wants, with the rights of this one.
func mayShare(dir string, rec store.Record) error {
	if len(rec.Shares) == 0 {
		return nil
	}
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		return fmt.Errorf("find VM's directory: %w", err)
	}
	if int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: VM %q is another user's: start it as that user", share.ErrFolder, rec.Name)
	}
	return nil
}

func (f *folders) open(shared SharedFolder) error {
	folder, err := share.Open(shared.Host, shared.ReadOnly)
	if err != nil {
		return err
	}
	f.all = append(f.all, openFolder{shared, folder})
	return nil
}

// mount mounts all of them in the guest of a new link.
func (f *folders) mount(ctx context.Context, link *guestlink.Link) error {
	for _, shared := range f.all {
		conn, err := link.MountFolder(ctx, guestapi.Folder{Path: shared.Guest, ReadOnly: shared.ReadOnly})
		var refused *guestlink.RefusedError
		switch {
		case errors.As(err, &refused) && f.begun:
			f.log.Warn("a shared folder could not be mounted again", "path", shared.Guest, "error", err)
			continue
		case refused != nil:
			return fmt.Errorf("%w: %s with a guest of image %s: %w", share.ErrFolder, shared.Host, f.image, err)
		case err != nil:
			return err
		}
		go f.serve(shared, conn)
	}
	f.begun = true
	return nil
}

// serve serves a folder for as long as the guest has it mounted.
func (f *folders) serve(shared openFolder, conn io.ReadWriteCloser) {
	defer conn.Close() //nolint:errcheck // it is over
	if err := shared.folder.Serve(conn); err != nil {
		f.log.Warn("a shared folder is served no more", "path", shared.Guest, "error", err)
	}
}

// close ends the sharing, after the links have ended.
func (f *folders) close() error {
	var closing sync.WaitGroup
	errs := make([]error, len(f.all))
	for i, shared := range f.all {
		closing.Go(func() { errs[i] = shared.folder.Close() })
	}
	closed := make(chan struct{})
	go func() {
		closing.Wait()
		close(closed)
	}()
	select {
	case <-closed:
		return errors.Join(errs...)
	case <-time.After(folderTimeout):
		return errors.New("a shared folder's filesystem does not answer")
	}
}
