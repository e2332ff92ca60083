package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

const (
	fuseDevice = "/dev/fuse"
	// folderModule is the kernel's module for folders, and the type of file system that it brings.
	folderModule = "fuse"
	// folderType is what a mounted folder's filesystem is called in the guest.
	folderType = "fuse.smolvm"
	// folderSource is what is said to be mounted.
	folderSource = "host"
	// replyHeadSize is that of what an answer begins with, in bytes, of which the first four tell
	// its length.
	replyHeadSize = 16
)

// folders are the mounts of the host's folders. The zero value is ready to use.
type folders struct {
	mu     sync.Mutex
	byPath map[string]*folderMount
}

// folderMount is one of them.
type folderMount struct {
	path   string // without links
	device *os.File
	once   sync.Once
}

// folder serves a guestapi.ChannelFolder.
func (s *Server) folder(ctx context.Context, p *peer, open ssh.NewChannel) {
	m, err := s.mountFolder(ctx, open.ExtraData())
	if err != nil {
		reject(open, err)
		return
	}
	s.reaper.detours.Add(1)
	defer s.reaper.detours.Add(-1)
	defer m.end()
	channel, requests, err := open.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	m.relay(channel, p.conn.Pace(channel))
}

func (s *Server) mountFolder(ctx context.Context, payload []byte) (*folderMount, error) {
	var f guestapi.Folder
	if err := guestapi.Decode(payload, &f); err != nil {
		return nil, fmt.Errorf("read folder: %w", err)
	}
	if err := s.system.Ready(ctx); err != nil {
		return nil, err
	}
	if err := ensureFilesystem(folderModule); err != nil {
		return nil, err
	}
	return s.folders.mount(f)
}

// mount mounts a folder. What an older session has mounted there goes first: its host is gone.
func (t *folders) mount(f guestapi.Folder) (*folderMount, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byPath[f.Path]; old != nil {
		old.end()
	}
	if err := os.MkdirAll(f.Path, 0o755); err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	path, err := filepath.EvalSymlinks(f.Path)
	if err != nil {
		return nil, fmt.Errorf("find mount point: %w", err)
	}
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", fuseDevice, err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if f.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	// The guest's kernel judges by the modes that the host tells, so the guest's users are kept apart.
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,default_permissions,allow_other", fd, unix.S_IFDIR)
	if err := unix.Mount(folderSource, path, folderType, flags, options); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("mount folder at %s: %w", f.Path, err)
	}
	// Only now is there something to poll.
	m := &folderMount{path: path, device: os.NewFile(uintptr(fd), fuseDevice)}
	if t.byPath == nil {
		t.byPath = make(map[string]*folderMount)
	}
	t.byPath[f.Path] = m
	return m, nil
}

// endAll takes all mounts away, of a session that has ended.
func (t *folders) endAll() {
	t.mu.Lock()
	all := t.byPath
	t.byPath = nil
	t.mu.Unlock()
	for _, m := range all {
		m.end()
	}
}

// end takes the mount away. What has files open in it gets errors from then on.
func (m *folderMount) end() {
	m.once.Do(func() {
		// With the device closed nothing waits for an answer any more, the walk to the mount included.
		_ = m.device.Close()
		_ = unix.Unmount(m.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // somebody in the guest may have done it
	})
}

// relay carries requests of the guest's kernel to the host, and answers back, until either is gone.
func (m *folderMount) relay(channel ssh.Channel, out io.Writer) {
	var both sync.WaitGroup
	both.Go(func() {
		defer m.end()
		defer channel.Close()
		m.carryRequests(out)
	})
	both.Go(func() {
		defer m.end()
		defer channel.Close()
		m.carryAnswers(channel)
	})
	both.Wait()
}

func (m *folderMount) carryRequests(to io.Writer) {
	buf := make([]byte, guestapi.MaxFolderMessage)
	for {
		n, err := m.device.Read(buf)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
			continue // who asked has given up meanwhile
		case err != nil:
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (m *folderMount) carryAnswers(from io.Reader) {
	buf := make([]byte, guestapi.MaxFolderMessage)
	for {
		if _, err := io.ReadFull(from, buf[:replyHeadSize]); err != nil {
			return
		}
		length := binary.LittleEndian.Uint32(buf)
		if length < replyHeadSize || length > guestapi.MaxFolderMessage {
			return
		}
		if _, err := io.ReadFull(from, buf[replyHeadSize:length]); err != nil {
			return
		}
		// Nobody may wait for it any more. If the device is gone the other direction notices.
		_, _ = m.device.Write(buf[:length])
	}
}
