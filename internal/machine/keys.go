package machine

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"
)

// newKey makes an SSH key pair: the private key as PEM, the public one as a
// line for authorized_keys.
func newKey(comment string) (private, public []byte, err error) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("make SSH key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return nil, nil, fmt.Errorf("encode SSH key: %w", err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("encode SSH key: %w", err)
	}
	return pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(sshPub), nil
}

// userKey returns the public key with which the user of the data directory logs
// in to its guests. The pair is made on first use: dir/id_ed25519 and .pub.
func userKey(dir string) ([]byte, error) {
	private := privateKey(dir)
	if key, err := publicKey(private); !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	key, public, err := newKey("smolvm")
	if err != nil {
		return nil, err
	}
	switch err := writeOnce(private, key); {
	case errors.Is(err, os.ErrExist):
		return publicKey(private) // another first user was faster
	case err != nil:
		return nil, fmt.Errorf("write SSH key: %w", err)
	}
	if err := renameio.WriteFile(private+".pub", public, 0o644); err != nil {
		return nil, fmt.Errorf("write SSH key: %w", err)
	}
	return public, nil
}

// privateKey is the path of that key.
func privateKey(dir string) string { return filepath.Join(dir, "id_ed25519") }

// publicKey reads the private key at path and returns its public half.
func publicKey(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read SSH key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("read SSH key %s: %w", path, err)
	}
	return ssh.MarshalAuthorizedKey(signer.PublicKey()), nil
}

// writeOnce makes a file that only its owner can read. It appears whole or not at
// all, and never in place of another, which is os.ErrExist.
func writeOnce(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}
