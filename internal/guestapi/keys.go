package guestapi

import (
	"bytes"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// Keys reads the keys of the guest's SSH server on the network, a nil host key if it has none. A key
// that may log in has no options: they would restrict it, and nothing in a guest would.
func (id *Identity) Keys() (host ssh.Signer, authorized []ssh.PublicKey, err error) {
	if len(id.HostKey) > 0 {
		if host, err = ssh.ParsePrivateKey(id.HostKey); err != nil {
			return nil, nil, fmt.Errorf("read host key: %w", err)
		}
	}
	for line := range bytes.Lines(id.AuthorizedKeys) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil {
			return nil, nil, fmt.Errorf("read authorized keys: %w", err)
		}
		if len(options) > 0 {
			return nil, nil, fmt.Errorf("read authorized keys: option %q is not supported", options[0])
		}
		authorized = append(authorized, key)
	}
	return host, authorized, nil
}
