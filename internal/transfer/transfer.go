// Package transfer copies files and directories between the host and a guest.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/smolvm/smolvm/internal/archive"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
)

// Guest is a guest that files can be moved into and out of, as guestlink.Channel's method
// does it.
type Guest interface {
	Files(ctx context.Context, op guestapi.Files, in io.Reader, out io.Writer) error
}

// Option changes how files are copied.
type Option func(*options)

type options struct {
	follow  bool
	onBytes func(done, total int64)
}

// FollowLink copies what the source's symbolic link leads to, rather than the link.
func FollowLink() Option { return func(o *options) { o.follow = true } }

// OnBytes has report called as bytes are copied: done of total, where total is 0 as long
// as it is not known. Calls come one after the other.
func OnBytes(report func(done, total int64)) Option {
	return func(o *options) { o.onBytes = report }
}

func chosen(opts []Option) options {
	var o options
	for _, set := range opts {
		set(&o)
	}
	return o
}

// errStopped ends the one side after the other side has ended.
var errStopped = errors.New("the other side has ended")

// ToGuest copies what is at src on this host to dst in the guest. Where it goes is told at
// archive.Extract, and what a path means that ends in "/" or "/." at archive.Pack.
func ToGuest(ctx context.Context, g Guest, src, dst string, opts ...Option) error {
	o := chosen(opts)
	what := fmt.Sprintf("copy %s to the guest's %s", src, dst)
	if err := archive.Check(src, o.follow); err != nil {
		return failed(what, err, src)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read, write := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := archive.Pack(ctx, write, src, archive.PackOptions{Follow: o.follow, OnBytes: o.onBytes})
		write.CloseWithError(err)
		packed <- err
	}()
	err := g.Files(ctx, guestapi.Files{Op: guestapi.FilesUnpack, Path: dst}, read, nil)
	// What is packed from now on nobody reads.
	read.CloseWithError(errStopped)
	cancel()
	return failed(what, cause(<-packed, err), src, dst)
}

// FromGuest copies what is at src in the guest to dst on this host, as ToGuest does the
// other way round. Nothing outside of dst is written, whatever the guest sends.
func FromGuest(ctx context.Context, g Guest, src, dst string, opts ...Option) error {
	o := chosen(opts)
	what := fmt.Sprintf("copy the guest's %s to %s", src, dst)
	read, write := io.Pipe()
	extracted := make(chan error, 1)
	go func() {
		err := archive.Extract(ctx, read, dst, archive.ExtractOptions{OnBytes: o.onBytes})
		if err != nil {
			read.CloseWithError(errStopped)
		}
		extracted <- err
	}()
	err := g.Files(ctx, guestapi.Files{Op: guestapi.FilesPack, Path: src, Follow: o.follow}, nil, write)
	if err != nil {
		write.CloseWithError(errStopped)
	} else {
		write.Close()
	}
	return failed(what, cause(<-extracted, err), src, dst)
}

// cause is the error of the side that failed first: the other one was only stopped. The
// guest may end well before it has read all, and stop its host by that.
func cause(host, guest error) error {
	if host != nil && !errors.Is(host, errStopped) && !errors.Is(host, context.Canceled) {
		return host
	}
	if guest != nil && !errors.Is(guest, errStopped) {
		return guest
	}
	return host
}

// failed says which copy failed and why, without a path that was said already.
func failed(what string, err error, said ...string) error {
	if err == nil {
		return nil
	}
	why := err.Error()
	var refused *guestlink.RefusedError
	if errors.As(err, &refused) {
		why = refused.Failure.Error
	}
	for _, path := range said {
		why = strings.TrimPrefix(why, path+": ")
	}
	return &copyError{text: what + ": " + why, err: err}
}

// copyError is an error in words of its own.
type copyError struct {
	text string
	err  error
}

func (e *copyError) Error() string { return e.text }
func (e *copyError) Unwrap() error { return e.err }
