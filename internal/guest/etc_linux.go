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

// etcWriter writes a file below /etc.
type etcWriter func(path string, content []byte, mode os.FileMode) error

// writeEtc writes the files below etc that say who and where the guest is.
func writeEtc(etc string, id guestapi.Identity, write etcWriter) error {
	hosts := filepath.Join(etc, "hosts")
	old, err := os.ReadFile(hosts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read hosts: %w", err)
	}
	errs := []error{
		write(filepath.Join(etc, "hostname"), []byte(id.Hostname+"\n"), 0o644),
		write(hosts, hostsFile(old, id.Hostname), 0o644),
		writeMachineID(filepath.Join(etc, "machine-id"), id.MachineID, write),
	}
	if id.Network != nil && len(id.Network.Nameservers) > 0 {
		errs = append(errs, write(filepath.Join(etc, "resolv.conf"), resolvConf(id.Network), 0o644))
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
		if bytes.HasSuffix(line, []byte(guestapi.HostsMark)) {
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
		b.WriteString("127.0.0.1\tlocalhost " + guestapi.HostsMark + "\n")
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback " + guestapi.HostsMark + "\n")
	}
	b.WriteString("127.0.1.1\t" + hostname + " " + guestapi.HostsMark + "\n")
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

// noMachineID is what the machine ID's file holds while there is none.
const noMachineID = "uninitialized"

// readMachineID returns the guest's machine ID, empty if it has none.
func readMachineID(path string) (string, error) {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read machine ID: %w", err)
	}
	if id := strings.TrimSpace(string(old)); id != noMachineID {
		return id, nil
	}
	return "", nil
}

// writeMachineID gives the guest the machine ID that it is told, or one of its own unless it has
// one.
func writeMachineID(path, told string, write etcWriter) error {
	if told != "" {
		return write(path, []byte(told+"\n"), 0o444)
	}
	if old, err := readMachineID(path); err != nil || old != "" {
		return err
	}
	var id [16]byte
	rand.Read(id[:])         // never fails
	id[6] = id[6]&0xf | 0x40 // a version 4 UUID, as programs expect
	id[8] = id[8]&0x3f | 0x80
	return write(path, []byte(hex.EncodeToString(id[:])+"\n"), 0o444)
}

// inPlaceSize is what a file may hold to be written in place: a page.
const inPlaceSize = 4096

// overwriteFile makes path have the content, where it is if it can be there: the block that it
// has needs no journal. Nobody else may read or write it, and it must be written again should
// the guest end meanwhile.
func overwriteFile(path string, content []byte, mode os.FileMode) error {
	if holds(path, content) {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != mode || max(info.Size(), int64(len(content))) > inPlaceSize {
		return replaceFile(path, content, mode)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && info.Size() > int64(len(content)) {
		err = f.Truncate(int64(len(content)))
	}
	return errors.Join(err, f.Close())
}

// holds tells whether a file, and not a link to one, has the content already.
func holds(path string, content []byte) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(content)) {
		return false
	}
	old, err := os.ReadFile(path)
	return err == nil && bytes.Equal(old, content)
}

// replaceFile makes path have the content, at once or not at all. A symbolic link
// there, to a service that the guest does not run, is replaced too.
func replaceFile(path string, content []byte, mode os.FileMode) (err error) {
	if holds(path, content) {
		return nil
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
