package guest

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// ours marks the lines in /etc/hosts that the guest program wrote.
const ours = "# smolvm"

// writeEtc writes the files below etc that say who and where the guest is.
func writeEtc(etc string, id guestapi.Identity) error {
	hosts := filepath.Join(etc, "hosts")
	old, err := os.ReadFile(hosts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read hosts: %w", err)
	}
	errs := []error{
		replaceFile(filepath.Join(etc, "hostname"), []byte(id.Hostname+"\n"), 0o644),
		replaceFile(hosts, hostsFile(old, id.Hostname), 0o644),
		writeMachineID(filepath.Join(etc, "machine-id")),
	}
	if id.Network != nil && len(id.Network.Nameservers) > 0 {
		errs = append(errs, replaceFile(filepath.Join(etc, "resolv.conf"), resolvConf(id.Network), 0o644))
	}
	return errors.Join(errs...)
}

// hostsFile returns old with the guest's name in it, and no name that it had
// before. The user's own lines stay as they are.
func hostsFile(old []byte, hostname string) []byte {
	var b bytes.Buffer
	localhost := false
	for line := range bytes.Lines(old) {
		line = bytes.TrimRight(line, "\n")
		if bytes.HasSuffix(line, []byte(ours)) {
			continue
		}
		address, _, _ := bytes.Cut(line, []byte("#"))
		for i, name := range bytes.Fields(address) {
			localhost = localhost || i > 0 && string(name) == "localhost"
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	if !localhost {
		b.WriteString("127.0.0.1\tlocalhost " + ours + "\n")
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback " + ours + "\n")
	}
	b.WriteString("127.0.1.1\t" + hostname + " " + ours + "\n")
	return b.Bytes()
}

func resolvConf(n *guestapi.Network) []byte {
	var b bytes.Buffer
	if len(n.Search) > 0 {
		b.WriteString("search " + strings.Join(n.Search, " ") + "\n")
	}
	for _, server := range n.Nameservers {
		b.WriteString("nameserver " + server.String() + "\n")
	}
	return b.Bytes()
}

// writeMachineID gives the guest a machine ID unless it has one.
func writeMachineID(path string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read machine ID: %w", err)
	}
	if id := strings.TrimSpace(string(old)); id != "" && id != "uninitialized" {
		return nil
	}
	var id [16]byte
	rand.Read(id[:])         // never fails
	id[6] = id[6]&0xf | 0x40 // a version 4 UUID, as programs expect
	id[8] = id[8]&0x3f | 0x80
	return replaceFile(path, []byte(hex.EncodeToString(id[:])+"\n"), 0o444)
}

// replaceFile makes path have the content, at once or not at all. A symbolic link
// there, to a service that the guest does not run, is replaced too.
func replaceFile(path string, content []byte, mode os.FileMode) (err error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
			return nil
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".smolvm-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
