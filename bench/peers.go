package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peers opens the routes of others, each as its users do.
func (w *world) peers() ([]route, error) {
	var routes []route
	for i, p := range []struct {
		name  string
		start func(route) error
	}{
		{bySSH, func(r route) error { return w.startSSH(r) }},
		{bySSHAES, func(r route) error { return w.startSSH(r, "-c", "aes128-gcm@openssh.com") }},
		{byDocker, func(r route) error { return w.startForEach(r, w.dockerProxy) }},
		{bySocat, func(r route) error { return w.startForEach(r, w.socat) }},
		{byPasta, w.startPasta},
	} {
		r := forwarded(p.name, 4+i, netip.MustParseAddr(ipv4Loopback))
		if err := p.start(r); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		for _, service := range services() {
			if err := w.host.awaitListener(r.base + service); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
		routes = append(routes, r)
	}
	return routes, nil
}

// run starts a tool that runs as long as the world.
func (w *world) run(at *place, program string, args ...string) error {
	cmd, err := w.tools.command(program, args...)
	if err != nil {
		return err
	}
	return w.launch(at, cmd)
}

// launch starts what runs as long as the world.
func (w *world) launch(at *place, cmd *exec.Cmd) error {
	p, err := at.start(cmd)
	if err != nil {
		return err
	}
	w.add(p.stop)
	return nil
}

// startForEach starts a peer that serves one port, for each service.
func (w *world) startForEach(r route, start func(hostPort, guestPort int) error) error {
	for _, service := range services() {
		if err := start(r.base+service, r.guestPort(service)); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) dockerProxy(hostPort, guestPort int) error {
	return w.startDockerProxy("tcp", hostPort, guestPort)
}

func (w *world) startDockerProxy(protocol string, hostPort, guestPort int) error {
	cmd, err := w.tools.command("usr/sbin/docker-proxy", "-proto", protocol,
		"-host-ip", ipv4Loopback, "-host-port", strconv.Itoa(hostPort),
		"-container-ip", guestAddress, "-container-port", strconv.Itoa(guestPort))
	if err != nil {
		return err
	}
	// It tells Docker on its fourth file that it listens, and does not work without one.
	nobody, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	cmd.ExtraFiles = []*os.File{nobody}
	return errors.Join(w.launch(w.host, cmd), nobody.Close())
}

func (w *world) socat(hostPort, guestPort int) error {
	return w.run(w.host, "usr/bin/socat",
		fmt.Sprintf("TCP4-LISTEN:%d,bind=%s,fork,reuseaddr,backlog=1024", hostPort, ipv4Loopback),
		fmt.Sprintf("TCP4:%s:%d", guestAddress, guestPort))
}

// startPasta connects the guest's loopback to the host's, with no packets between.
func (w *world) startPasta(r route) error {
	// It gives up the right to look at other processes, so the guest's network needs a
	// name of its own.
	name := filepath.Join(w.dir, "guest")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return err
	}
	space := fmt.Sprintf("/proc/%d/ns/net", w.services.cmd.Process.Pid)
	if err := unix.Mount(space, name, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("name the guest's network: %w", err)
	}
	w.add(func() error { return unix.Unmount(name, unix.MNT_DETACH) })
	args := []string{"--foreground", "--quiet", "--runas", "0", "--netns-only", "--netns", name, "-u", "none", "-T", "none", "-U", "none"}
	for _, service := range services() {
		args = append(args, "-t", fmt.Sprintf("%s/%d:%d", ipv4Loopback, r.base+service, r.guestPort(service)))
	}
	return w.run(w.host, "usr/bin/pasta", args...)
}

// The files of an SSH server that runs once, for a user who is root here alone.
const (
	sshdConfig = `Port %d
HostKey %s
AuthorizedKeysFile %s
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
`
	// It wants a user and a directory that the packages' scripts would have made. They
	// are made in a mount namespace that ends with it.
	sshdStart = `set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
{ grep -v '^sshd:' /etc/passwd; echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin'; } >"$1/passwd"
echo 'root:*:1::::::' >"$1/shadow"
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shadow" /etc/shadow
exec "$2" -D -f "$1/sshd_config"`
)

// startSSHServer starts the server of ssh -L in the guest, with keys made for it.
func (w *world) startSSHServer() error {
	dir := filepath.Join(w.dir, "ssh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, key := range []string{"host", "user"} {
		keygen, err := w.tools.command("usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
		if err != nil {
			return err
		}
		if _, err := w.host.output(keygen); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(sshdConfig, portSSH, filepath.Join(dir, "host"), filepath.Join(dir, "user.pub"))
	if err := os.WriteFile(filepath.Join(dir, "sshd_config"), []byte(config), 0o600); err != nil {
		return err
	}
	sshd, err := w.tools.command("usr/sbin/sshd")
	if err != nil {
		return err
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", sshdStart, "sh", dir, sshd.Path)
	cmd.Env = sshd.Env
	if err := w.launch(w.inGuest, cmd); err != nil {
		return err
	}
	return w.inGuest.awaitListener(portSSH)
}

func (w *world) startSSH(r route, options ...string) error {
	args := sshArgs(filepath.Join(w.dir, "ssh", "user"), w.guest, options...)
	for _, service := range services() {
		args = append(args, "-L", fmt.Sprintf("%s:%d:%s:%d", ipv4Loopback, r.base+service, ipv4Loopback, r.guestPort(service)))
	}
	return w.run(w.host, "usr/bin/ssh", args...)
}

// sshArgs are arguments of a client that runs no command and asks nothing.
func sshArgs(key string, host netip.Addr, options ...string) []string {
	args := strings.Fields("-N -F none -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR" +
		" -o BatchMode=yes -o ExitOnForwardFailure=yes -o IdentitiesOnly=yes -l root")
	args = append(args, "-i", key, host.String())
	return append(args, options...)
}
