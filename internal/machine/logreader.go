package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// logPoll is how often a log that is followed is looked at.
const logPoll = 100 * time.Millisecond

// logReader reads a log that consists of an older part, name.1, and a present one, name. When
// the present one is full it becomes the older one. When the log begins anew, the present one
// is replaced or made empty, and there is no older one.
type logReader struct {
	ctx    context.Context
	dir    *os.File // the VM's; open, so that it is found when the VM gets another name
	name   string
	follow bool
	closed chan struct{}

	mu    sync.Mutex // held while files are read, never while waiting
	done  bool
	parts []*os.File // to be read, one after the other
}

// begin opens the log, and skips all but the last lines, unless lines is 0.
func (l *logReader) begin(lines int) (err error) {
	for {
		if l.parts, err = l.open(); err != nil || lines == 0 {
			return err
		}
		if err = l.skip(lines); !errors.Is(err, io.EOF) {
			return err
		}
		// The log began anew just now.
		if err = closeAll(l.parts...); err != nil {
			return err
		}
	}
}

// open opens the parts that there are, the older one first.
func (l *logReader) open() ([]*os.File, error) {
	for {
		present, err := l.openPart(l.name)
		if err != nil {
			return nil, err
		}
		older, err := l.openPart(l.name + ".1")
		if err != nil {
			return nil, errors.Join(err, closeAll(present))
		}
		switch {
		case present == nil && older == nil:
			return nil, nil
		case present == nil:
			return []*os.File{older}, nil
		case older == nil:
			return []*os.File{present}, nil
		case !sameFile(older, present):
			return []*os.File{older, present}, nil
		}
		// It became the older one in between.
		if err := closeAll(older, present); err != nil {
			return nil, err
		}
	}
}

// openPart opens a part of the log. It is nil if there is none.
func (l *logReader) openPart(name string) (*os.File, error) {
	// Nothing but a file is a log: no link to one elsewhere, and nothing that blocks.
	fd, err := unix.Openat(int(l.dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", name)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Read reads what comes next. With follow it waits for that.
func (l *logReader) Read(p []byte) (int, error) {
	for len(p) > 0 {
		n, err := l.read(p)
		if n > 0 || err != nil {
			return n, err
		}
		if err := l.wait(); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// read reads what there is. It returns 0 and no error if there may be more later.
func (l *logReader) read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return 0, fmt.Errorf("read log: %w", os.ErrClosed)
	} else if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	for {
		n, err := l.readParts(p)
		if n > 0 || err != nil {
			return n, err
		}
		if !l.follow {
			return 0, io.EOF
		}
		gone, err := l.isGone()
		if err != nil {
			return 0, err
		}
		news, err := l.advance()
		switch {
		case err != nil:
			return 0, err
		case news:
			continue
		case gone:
			return 0, io.EOF
		}
		return 0, nil
	}
}

// readParts reads from the first part that has more, and keeps the last one open.
func (l *logReader) readParts(p []byte) (int, error) {
	for len(l.parts) > 0 {
		n, err := l.parts[0].Read(p)
		switch {
		case n > 0:
			return n, nil
		case !errors.Is(err, io.EOF):
			return 0, fmt.Errorf("read log: %w", err)
		case len(l.parts) == 1:
			return 0, nil
		}
		if err := closeAll(l.parts[0]); err != nil {
			return 0, fmt.Errorf("read log: %w", err)
		}
		l.parts = l.parts[1:]
	}
	return 0, nil
}

// advance looks for more, after what there was has been read to its end.
func (l *logReader) advance() (news bool, err error) {
	if len(l.parts) == 0 {
		l.parts, err = l.open()
		return len(l.parts) > 0, err
	}
	now := l.parts[0]
	var there, open unix.Stat_t
	if err := unix.Fstat(int(now.Fd()), &open); err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	err = unix.Fstatat(int(l.dir.Fd()), l.name, &there, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil // the next part is about to come, or none
	case err != nil:
		return false, fmt.Errorf("read log: %w", err)
	case there.Dev == open.Dev && there.Ino == open.Ino:
		return l.rewind(now, open.Size)
	}
	// What was written before it was set aside is still to be read: this part remains the
	// first one. It may be the older one by now, or that may be a newer one.
	parts, err := l.open()
	if err != nil {
		return false, err
	}
	for _, part := range parts {
		if !sameFile(part, now) {
			l.parts = append(l.parts, part)
		} else if err := closeAll(part); err != nil {
			return false, err
		}
	}
	return len(l.parts) > 1, nil
}

// rewind begins the part again if it has become shorter than what was read of it.
func (l *logReader) rewind(part *os.File, size int64) (rewound bool, err error) {
	at, err := part.Seek(0, io.SeekCurrent)
	if err == nil && size < at {
		_, err = part.Seek(0, io.SeekStart)
		rewound = true
	}
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	return rewound && size > 0, nil
}

// isGone tells whether the VM's directory was removed.
func (l *logReader) isGone() (bool, error) {
	var dir unix.Stat_t
	if err := unix.Fstat(int(l.dir.Fd()), &dir); err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	return dir.Nlink == 0, nil
}

// wait waits until it is worth while to look again.
func (l *logReader) wait() error {
	timer := time.NewTimer(logPoll)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.closed: // the next read tells
	case <-l.ctx.Done():
		return l.ctx.Err()
	}
	return nil
}

// Close ends a Read that waits, which fails with os.ErrClosed as later ones do. It is
// idempotent.
func (l *logReader) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return nil
	}
	l.done = true
	close(l.closed)
	err := closeAll(append(l.parts, l.dir)...)
	l.parts = nil
	return err
}

// sameFile tells whether two open files are one.
func sameFile(a, b *os.File) bool {
	ia, errA := a.Stat()
	ib, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// closeAll closes files, of which some may be nil.
func closeAll(files ...*os.File) error {
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
