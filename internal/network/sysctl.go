package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func ipv4Conf(link, key string) string { return "/proc/sys/net/ipv4/conf/" + link + "/" + key }
func ipv6Conf(link, key string) string { return "/proc/sys/net/ipv6/conf/" + link + "/" + key }

// setting is one kernel setting of an interface.
type setting struct{ path, value string }

// tapSettings are the settings of a guest's interface.
func tapSettings(link string, egress bool) []setting {
	forwarding := "0"
	if egress {
		forwarding = "1"
	}
	return []setting{
		{ipv6Conf(link, "disable_ipv6"), "1"},
		// The kernel's forwards keep 127.0.0.1 as their source until the last moment
		// and have it as the destination of replies. The guards in the table stop the guest
		// from making use of this.
		{ipv4Conf(link, "route_localnet"), "1"},
		{ipv4Conf(link, "rp_filter"), "1"},
		{ipv4Conf(link, "forwarding"), forwarding},
		{ipv4Conf(link, "proxy_arp"), "0"},
		{ipv4Conf(link, "accept_redirects"), "0"},
		{ipv4Conf(link, "send_redirects"), "0"},
		{ipv4Conf(link, "accept_source_route"), "0"},
		{ipv4Conf(link, "accept_local"), "0"},
		{ipv4Conf(link, "arp_ignore"), "1"}, // tell nothing of the host's other addresses
	}
}

func writeSettings(settings []setting) error {
	for _, s := range settings {
		err := os.WriteFile(s.path, []byte(s.value), 0)
		if s.isIPv6() && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("change kernel setting: %w", err)
		}
	}
	return nil
}

func (s setting) isIPv6() bool { return strings.HasPrefix(s.path, "/proc/sys/net/ipv6/") }

// readSetting returns a setting without its newline. It is read twice a second, so it
// does without what os.ReadFile does for files of any size.
func readSetting(path string) (string, error) {
	failed := func(op string, err error) (string, error) {
		return "", fmt.Errorf("read kernel setting: %w", &os.PathError{Op: op, Path: path, Err: err})
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	defer unix.Close(fd)
	var value [32]byte
	n, err := unix.Read(fd, value[:])
	if err != nil {
		return failed("read", err)
	}
	return string(bytes.TrimSpace(value[:n])), nil
}
