package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/smolvm/smolvm/internal/diskusage"
)

// Unpack decompresses layers into files in a new directory, several at a time, so that reading them
// and writing the tree takes less. It returns the layers to use in their place, while the
// directory is there. That is but to save time: a layer that is not compressed, that cannot be
// decompressed, or for which more than half of the space would be needed that is left, stays as it
// is, and tells itself what is wrong with it when it is read. Progress is told how many bytes of
// the layers, as they are stored, were read; it may be nil.
func Unpack(ctx context.Context, layers []Layer, dir string, progress func(done int64)) ([]Layer, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("unpack layers: %w", err)
	}
	room, err := diskusage.Free(dir)
	if err != nil {
		return nil, fmt.Errorf("unpack layers: %w", err)
	}
	u := &unpacker{room: room / 2, report: progress}
	unpacked := append([]Layer{}, layers...)
	turns := make(chan struct{}, runtime.GOMAXPROCS(0))
	var all sync.WaitGroup
	for i := range unpacked {
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			path := filepath.Join(dir, fmt.Sprintf("layer%d", i))
			if err := u.layer(ctx, layers[i], path); err != nil {
				_ = os.Remove(path) // it goes with the directory
				return
			}
			unpacked[i].Open = func() (io.ReadCloser, error) { return os.Open(path) }
		})
	}
	all.Wait()
	return unpacked, ctx.Err()
}

// unpacker unpacks several layers.
type unpacker struct {
	mu     sync.Mutex
	room   int64 // bytes that may still be written
	done   int64 // bytes that were read
	report func(done int64)
}

var (
	errPlain  = errors.New("it is not compressed")
	errNoRoom = errors.New("there is no room for it")
)

// layer unpacks one to a new file.
func (u *unpacker) layer(ctx context.Context, l Layer, path string) error {
	stored, err := l.Open()
	if err != nil {
		return err
	}
	// Who waits for more of it gets no further.
	stop := context.AfterFunc(ctx, func() { stored.Close() })
	defer stop()
	head := make([]byte, len(xzMagic))
	n, err := fill(stored, head)
	if err != nil && !errors.Is(err, io.EOF) || !isCompressed(head[:n]) {
		return errors.Join(errPlain, err, stored.Close())
	}
	last := int64(0)
	count := &counter{report: func(done int64) {
		u.add(done - last)
		last = done
	}}
	r := newReadAhead(ctx, headed{io.MultiReader(bytes.NewReader(head[:n]), stored), stored}, count)
	defer r.close()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(u.write(r, file), file.Close())
}

// headed is a layer whose beginning was looked at.
type headed struct {
	io.Reader
	io.Closer
}

// write writes what is unpacked, and leaves holes where there is nothing but zeros.
func (u *unpacker) write(r io.Reader, file *os.File) error {
	const chunk = 64 << 10
	data, zero := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); ; {
		n, err := fill(r, data)
		if !bytes.Equal(data[:n], zero[:n]) {
			if !u.take(int64(n)) {
				return errNoRoom
			}
			if _, err := file.WriteAt(data[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return file.Truncate(at)
		case err != nil:
			return err
		case at > defaultBytes+maxPadding:
			return errNoRoom // more than any layer may have
		}
	}
}

// maxPadding is what a layer may have besides the contents of its files, in bytes.
const maxPadding = defaultEntries*perEntry + perLayer

func (u *unpacker) take(n int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.room -= n
	return u.room >= 0
}

func (u *unpacker) add(n int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done += n
	if u.report != nil {
		u.report(u.done)
	}
}
