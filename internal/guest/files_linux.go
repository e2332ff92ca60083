package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/archive"
	"github.com/smolvm/smolvm/internal/guestapi"
)

// newFileMode is what a file gets that is written anew, if the host does not say.
const newFileMode = 0o644

// errBrokenOff says that the host did not send all.
var errBrokenOff = errors.New("the host has broken off")

// nobody is a host that has gone.
type nobody struct{}

func (nobody) Read([]byte) (int, error)  { return 0, errBrokenOff }
func (nobody) Write([]byte) (int, error) { return 0, errBrokenOff }

// transfer is what is done on a guestapi.ChannelFiles: it takes what comes in and writes
// what goes out. It must be called once. Its error says of a file which one it is about
// only where the host did not name it.
type transfer func(ctx context.Context, in io.Reader, out io.Writer) error

// files serves a guestapi.ChannelFiles.
func (s *Server) files(ctx context.Context, p *peer, open ssh.NewChannel) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	do, err := s.readFiles(ctx, open.ExtraData())
	if err != nil {
		reject(open, err)
		return
	}
	channel, requests, err := open.Accept()
	if err != nil {
		_ = do(ctx, nobody{}, nobody{}) // it gives back what it holds
		return
	}
	in := &input{channel: channel, ended: make(chan struct{}), over: make(chan struct{})}
	go func() {
		defer s.survive()
		in.follow(requests)
		cancel() // the host has closed the channel: nobody waits for the rest
	}()
	err = do(ctx, in, p.conn.Pace(channel))
	var result []byte
	if err != nil {
		result = refusal(err)
	}
	_, _ = channel.SendRequest(guestapi.RequestFilesDone, false, result)
	_ = channel.Close()
}

// readFiles reads what a host wants done, and sees whether that can begin.
func (s *Server) readFiles(ctx context.Context, payload []byte) (transfer, error) {
	var f guestapi.Files
	if err := guestapi.Decode(payload, &f); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	if f.Path == "" {
		return nil, unix.ENOENT
	}
	if err := s.system.Ready(ctx); err != nil {
		return nil, err
	}
	path := f.Path
	if !filepath.IsAbs(path) {
		// Joined by hand: how a path ends matters.
		path = rootUser(passwdFile).directory() + "/" + path
	}
	switch f.Op {
	case guestapi.FilesPack:
		return s.packFiles(path, f.Follow)
	case guestapi.FilesUnpack:
		return func(ctx context.Context, in io.Reader, _ io.Writer) error {
			return archive.Extract(ctx, in, path, archive.ExtractOptions{SetID: true})
		}, nil
	case guestapi.FilesRead:
		return readFile(path)
	case guestapi.FilesWrite:
		return writeFile(path, fs.FileMode(f.Mode).Perm())
	}
	return nil, fmt.Errorf("unknown operation %q", string(f.Op))
}

func (s *Server) packFiles(path string, follow bool) (transfer, error) {
	if err := archive.Check(path, follow); err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ io.Reader, out io.Writer) error {
		notes, first := 0, ""
		err := archive.Pack(ctx, out, path, archive.PackOptions{Follow: follow, Warn: func(note string) {
			if notes++; notes == 1 {
				first = note
			}
		}})
		if notes > 0 {
			s.log.Warn("not all files were copied as they are", "files", notes, "first", first)
		}
		return err
	}, nil
}

// readFile sends the contents of a file, which may be of any length, whatever its size is
// said to be.
func readFile(path string) (transfer, error) {
	// It does not wait for the writer of a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, because(err)
	}
	if err := regular(f.Stat()); err != nil {
		f.Close()
		return nil, err
	}
	return func(_ context.Context, _ io.Reader, out io.Writer) error {
		defer f.Close()
		return because(copyFile(out, f))
	}, nil
}

// copyFile copies with a buffer of its own, of a size that suits files.
func copyFile(to io.Writer, from io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 128<<10))
	return err
}

// regular fails if a file is not one that has contents.
func regular(info fs.FileInfo, err error) error {
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return unix.EISDIR
	case !info.Mode().IsRegular():
		return fmt.Errorf("it is no regular file: %w", unix.EINVAL)
	}
	return nil
}

// writeFile makes what comes in a file, whole or not at all. One that is there keeps its
// mode and its owner.
func writeFile(path string, mode fs.FileMode) (transfer, error) {
	if mode == 0 {
		mode = newFileMode
	}
	old, err := os.Stat(path)
	switch {
	case err == nil:
		if err := regular(old, nil); err != nil {
			return nil, err
		}
		mode = old.Mode()
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, because(err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, because(err)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return nil, because(err)
	}
	return func(_ context.Context, in io.Reader, _ io.Writer) error {
		defer func() { _ = f.Cleanup() }() // nothing, once the file has its place
		err := copyFile(f, in)
		if err == nil && old != nil {
			err = giveTo(f.File, old)
		}
		if err == nil {
			err = f.CloseAtomicallyReplace()
		}
		return because(err)
	}, nil
}

// giveTo gives a file the owner and the mode of another.
func giveTo(f *os.File, other fs.FileInfo) error {
	owner := other.Sys().(*syscall.Stat_t)
	if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
		return err
	}
	return f.Chmod(other.Mode()) // a new owner takes the set-user-ID bit away
}

// because leaves out of an error which file it is about.
func because(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// input is what the host sends. It ends with errBrokenOff unless the host has said before
// that this is the end: SSH tells the same of the end of a session.
type input struct {
	channel ssh.Channel
	ended   chan struct{} // closed when the host has said so
	over    chan struct{} // closed when it has closed the channel, or the session has ended
}

func (i *input) follow(requests <-chan *ssh.Request) {
	defer close(i.over)
	ended := false
	for req := range requests {
		if req.Type == guestapi.RequestEnd && !ended {
			ended = true
			close(i.ended)
		}
		_ = req.Reply(false, nil)
	}
}

// Read implements io.Reader.
func (i *input) Read(p []byte) (int, error) {
	n, err := i.channel.Read(p)
	if n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	select {
	case <-i.ended:
		return 0, io.EOF
	case <-i.over:
	}
	select {
	case <-i.ended:
		return 0, io.EOF
	default:
		return 0, errBrokenOff
	}
}
