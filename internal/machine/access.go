package machine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// Dial connects to a TCP address as the guest sees it, over the guest channel.
func (v *VM) Dial(ctx context.Context, address string) (net.Conn, error) {
	const op = "connect"
	r, err := v.answering(ctx, op)
	if err != nil {
		return nil, err
	}
	conn, err := r.channel.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, v.unlessStopped(ctx, op, err)
	}
	return conn, nil
}

// Files moves files into the guest or out of it.
func (v *VM) Files(ctx context.Context, op guestapi.Files, in io.Reader, out io.Writer) error {
	const verb = "copy files"
	r, err := v.answering(ctx, verb)
	if err != nil {
		return err
	}
	if err := r.channel.Files(ctx, op, in, out); err != nil {
		return v.unlessStopped(context.WithoutCancel(ctx), verb, err)
	}
	return nil
}

// SSHAccess is what an SSH client needs to log in to a guest.
type SSHAccess struct {
	User           string `json:"user"`
	IdentityFile   string `json:"identity_file"`    // of the private key, without a passphrase
	KnownHostsFile string `json:"known_hosts_file"` // has the guest's key
	HostKeyAlias   string `json:"host_key_alias"`   // under this name
}

// SSH returns how SSH clients log in to a VM's guest. It makes the files if need be.
func (h *Host) SSH(ctx context.Context, name string) (SSHAccess, error) {
	entry, err := h.store.Get(ctx, name)
	if err != nil {
		return SSHAccess{}, err
	}
	if _, err := userKey(h.store.Keys()); err != nil {
		return SSHAccess{}, err
	}
	key, err := ssh.ParsePrivateKey(entry.HostKey)
	if err != nil {
		return SSHAccess{}, fmt.Errorf("read host key of VM %s: %w", name, err)
	}
	access := SSHAccess{
		User: "root", IdentityFile: privateKey(h.store.Keys()),
		KnownHostsFile: filepath.Join(entry.Dir, "known_hosts"), HostKeyAlias: name + ".smolvm",
	}
	line := fmt.Appendf(nil, "%s %s", access.HostKeyAlias, ssh.MarshalAuthorizedKey(key.PublicKey()))
	if known, err := os.ReadFile(access.KnownHostsFile); err == nil && bytes.Equal(known, line) {
		return access, nil
	}
	if err := renameio.WriteFile(access.KnownHostsFile, line, 0o600); err != nil {
		return SSHAccess{}, fmt.Errorf("write host key of VM %s: %w", name, err)
	}
	return access, nil
}
