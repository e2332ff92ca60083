package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/smolvm/smolvm/internal/oci/blob"
)

// bufferSize is how much is read at once.
const bufferSize = 128 << 10

// fetcher gets parts of an image from a source into the cache.
type fetcher struct {
	source source
	opts   Options
}

// layers gets several parts at once. All are waiting until their turn comes.
func (f *fetcher) layers(ctx context.Context, layers []descriptor) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	teller := &teller{tell: f.opts.Progress}
	var tellers []*layerTeller
	for _, d := range layers {
		tellers = append(tellers, teller.layer(d))
		tellers[len(tellers)-1].report(Waiting, 0)
	}
	turns := make(chan struct{}, parallelFetches)
	var all sync.WaitGroup
	for i, d := range layers {
		all.Go(func() {
			select {
			case turns <- struct{}{}:
				defer func() { <-turns }()
			case <-ctx.Done():
				return
			}
			if err := f.part(ctx, d, tellers[i].report); err != nil {
				cancel(fmt.Errorf("layer %s: %w", d.Digest, err)) // the first failure ends the others
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// part gets one part into the cache unless it is there.
func (f *fetcher) part(ctx context.Context, d descriptor, report func(State, int64)) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	digest, err := blob.ParseDigest(d.Digest)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := f.opts.Cache.CheckSize(ctx, digest, d.Size); err != nil {
		return err
	}
	w, err := f.opts.Cache.Begin(ctx, digest, func() { report(Waiting, 0) })
	if err != nil {
		return f.unwritten(d, err)
	}
	if w == nil {
		report(Cached, d.Size)
		return nil
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := f.write(ctx, w, d, report); err != nil {
		return f.unwritten(d, err)
	}
	report(Done, d.Size)
	return nil
}

// write gets one part from where the last one who tried has come to.
func (f *fetcher) write(ctx context.Context, w *blob.Writer, d descriptor, report func(State, int64)) error {
	report(Verifying, 0)
	resumed, err := w.Resume(ctx, d.Size)
	if err != nil {
		return err
	}
	pieces := resumed > 0 // what is there came in several
	anew := false
	for failures := 0; ; {
		before := w.Size()
		err := f.copyRest(ctx, w, d, report)
		if err == nil {
			err = w.Commit()
			if !errors.Is(err, blob.ErrDigest) || !pieces || anew {
				return err
			}
			// Some piece is damaged, which need not be the fault of where the last came from.
			f.opts.Log.Warn("what was fetched in pieces is damaged, fetch it anew", "digest", d.Digest)
			anew = true
			continue
		}
		if !errors.Is(err, errBroken) || ctx.Err() != nil {
			return err
		}
		if w.Size() > before {
			failures = 0
		}
		if failures++; failures >= f.opts.Patience.Attempts {
			return err
		}
		pieces = pieces || w.Size() > 0
		wait := f.opts.Patience.wait(failures)
		f.opts.Log.Info("download broke off, go on with it", "digest", d.Digest, "bytes", w.Size(), "wait", wait, "err", clean(err.Error()))
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// copyRest gets what w does not have yet. It fails with errBroken if it may go on another time.
func (f *fetcher) copyRest(ctx context.Context, w *blob.Writer, d descriptor, report func(State, int64)) (err error) {
	if w.Size() == d.Size && d.Size > 0 {
		return nil
	}
	report(Downloading, w.Size())
	body, start, err := f.source.open(ctx, d, w.Size())
	if err != nil {
		return err
	}
	defer body.Close()
	if start != w.Size() {
		if err := w.Reset(); err != nil {
			return err
		}
	}
	buffer := make([]byte, bufferSize)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, rerr := body.Read(buffer)
		if w.Size()+int64(n) > d.Size {
			return errors.Join(fmt.Errorf("%w: more than the %d bytes came that it says to have", ErrInvalid, d.Size), w.Reset())
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			return err
		}
		report(Downloading, w.Size())
		switch {
		case rerr == io.EOF && w.Size() < d.Size:
			return errors.Join(fmt.Errorf("%w: %d bytes came, and not the %d that it says to have", ErrInvalid, w.Size(), d.Size), w.Reset())
		case rerr == io.EOF:
			return nil
		case rerr != nil:
			return fmt.Errorf("read: %w", rerr)
		}
	}
}

// unwritten says what it means that the disk is full.
func (f *fetcher) unwritten(d descriptor, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return noSpace(fmt.Sprintf("%s (%d bytes)", d.Digest, d.Size), f.opts.Cache.Dir(), err)
	}
	return err
}

func noSpace(what, dir string, err error) error {
	return fmt.Errorf("there is no space left for %s in %s; what has come is kept, and the next pull goes on from there: %w", what, dir, err)
}
