package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Resolver is how names are looked up.
type Resolver struct {
	Nameservers []netip.Addr
	Search      []string
}

// The files that say which name servers the host uses. The second has what stands
// behind a stub that systemd-resolved puts into the first.
const (
	resolvConf        = "/etc/resolv.conf"
	resolvConfUplinks = "/run/systemd/resolve/resolv.conf"
)

// Nameservers returns the host's own name servers that guests can reach too, and its
// search domains. Servers on the host's loopback, link-local ones and those that speak
// IPv6 only cannot be reached, and if there are no others the list is empty.
func Nameservers() (Resolver, error) { return readResolver(resolvConf, resolvConfUplinks) }

func readResolver(files ...string) (Resolver, error) {
	var found Resolver
	for _, file := range files {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Resolver{}, fmt.Errorf("read name servers: %w", err)
		}
		r, err := parseResolver(f)
		f.Close()
		if err != nil {
			return Resolver{}, fmt.Errorf("read name servers: %s: %w", file, err)
		}
		if len(found.Search) == 0 {
			found.Search = r.Search
		}
		found.Nameservers = slices.DeleteFunc(r.Nameservers, func(a netip.Addr) bool { return !reachable(a) })
		if len(found.Nameservers) > 0 {
			break
		}
	}
	return found, nil
}

// reachable tells whether a guest could reach a server of the host's.
func reachable(a netip.Addr) bool {
	return a.Is4() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

// parseResolver reads the format of resolv.conf. Lines that it does not understand are
// skipped, as resolvers do. Addresses are unmapped.
func parseResolver(r io.Reader) (Resolver, error) {
	var found Resolver
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if addr, err := netip.ParseAddr(fields[1]); err == nil && !slices.Contains(found.Nameservers, addr.Unmap()) {
				found.Nameservers = append(found.Nameservers, addr.Unmap())
			}
		case "search", "domain": // the last one counts
			found.Search = nil
			for _, domain := range fields[1:] {
				if strings.HasPrefix(domain, "#") || strings.HasPrefix(domain, ";") {
					break
				}
				if domain = strings.TrimSuffix(domain, "."); domain != "" {
					found.Search = append(found.Search, domain)
				}
			}
		}
	}
	return found, lines.Err()
}
