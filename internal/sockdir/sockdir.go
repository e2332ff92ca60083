// Package sockdir reaches unix sockets through the open directory that they are in,
// since a socket's path is limited to 107 bytes and a directory's is not.
package sockdir

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir is an open directory. Its methods may be called concurrently. The names that
// they take are of files in it.
type Dir struct{ file *os.File }

// Open opens the directory at path. The caller closes it. What was made with it
// works on when it is closed.
func Open(path string) (*Dir, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f}, nil
}

// Close closes the directory.
func (d *Dir) Close() error { return d.file.Close() }

// path is a short name of a file in the directory, good for this process and
// for as long as the directory is open.
func (d *Dir) path(name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.file.Fd())) + "/" + name
}

// Listener makes a socket that only this user may connect to, in place of one that
// a dead process left. It stays in the directory when the listener is closed, until
// Remove.
func (d *Dir) Listener(ctx context.Context, name string) (net.Listener, error) {
	l, err := d.listen(ctx, name)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Listen is Listener for a socket that another process is to listen on. Connections
// wait in its backlog meanwhile. The caller closes the file.
func (d *Dir) Listen(ctx context.Context, name string) (*os.File, error) {
	l, err := d.listen(ctx, name)
	if err != nil {
		return nil, err
	}
	f, err := l.File()
	if closeErr := l.Close(); err == nil && closeErr != nil {
		return nil, errors.Join(closeErr, f.Close())
	}
	return f, err
}

func (d *Dir) listen(ctx context.Context, name string) (*net.UnixListener, error) {
	if err := d.Remove(name); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		// On Linux, the mode of the socket is that of the file bind makes of it.
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	l, err := config.Listen(ctx, "unix", d.path(name))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	unixListener := l.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false)
	return unixListener, nil
}

// Dial connects to a socket.
func (d *Dir) Dial(ctx context.Context, name string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", d.path(name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	return conn, nil
}

// Remove removes a socket, if there is one.
func (d *Dir) Remove(name string) error {
	err := unix.Unlinkat(int(d.file.Fd()), name, 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
