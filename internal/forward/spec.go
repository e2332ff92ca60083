package forward

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Spec is ports as people write them: [[HOST_IP:]HOST_PORT:]GUEST_PORT[/tcp|/udp],
// where both ports may be ranges of the same length, as in 8000-8010:9000-9010.
type Spec struct {
	HostPort  int      // the first one; 0: any
	GuestPort int      // the first one
	Count     int      // how many in a row; 0 means 1
	Protocol  Protocol // empty: TCP
}

// specForm is what error messages say a Spec looks like.
const specForm = "[[HOST_IP:]HOST_PORT:]GUEST_PORT[/tcp|/udp]"

// ParseSpec reads a Spec. The host address may be 127.0.0.1, ::1 or localhost,
// with or without brackets; all of them mean localhost, which is both addresses. With
// a host address the host port may be left empty, for any. A port out of range is
// a *PortError; all other errors wrap ErrInvalidSpec.
func ParseSpec(text string) (Spec, error) {
	spec, err := parseSpec(text)
	if err != nil {
		return Spec{}, fmt.Errorf("port %q: %w", text, err)
	}
	return spec, nil
}

func parseSpec(text string) (Spec, error) {
	spec := Spec{Protocol: TCP}
	ports, protocol, given := strings.Cut(text, "/")
	if given {
		spec.Protocol = Protocol(strings.ToLower(protocol))
		if spec.Protocol != TCP && spec.Protocol != UDP {
			return Spec{}, fmt.Errorf("%w: after the slash comes %s or %s", ErrInvalidSpec, TCP, UDP)
		}
	}
	host, guest, two := cutLast(ports)
	guestPorts, err := parseRange("guest_port", guest)
	if err != nil {
		return Spec{}, err
	}
	spec.GuestPort, spec.Count = guestPorts.first, guestPorts.count()
	if !two {
		return spec, nil
	}
	address, host, three := cutLast(host)
	if three {
		if err := checkLocalhost(address); err != nil {
			return Spec{}, err
		}
		if host == "" {
			return spec, nil
		}
	} else if isHost(host) {
		return Spec{}, fmt.Errorf("%w: %s is an address, and the host's port is missing: write %s:HOST_PORT:%s, or %s::%s for any",
			ErrInvalidSpec, host, host, guest, host, guest)
	}
	hostPorts, err := parseRange("host_port", host)
	if err != nil {
		return Spec{}, err
	}
	if hostPorts.count() != spec.Count {
		return Spec{}, fmt.Errorf("%w: %d ports of the host cannot lead to %d of the guest", ErrInvalidSpec, hostPorts.count(), spec.Count)
	}
	spec.HostPort = hostPorts.first
	return spec, nil
}

// cutLast cuts at the last colon. Without one all of it is what comes after.
func cutLast(text string) (before, after string, found bool) {
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		return text[:i], text[i+1:], true
	}
	return "", text, false
}

// isHost tells whether text is an address, or the name of one, rather than a port.
func isHost(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil || strings.EqualFold(text, "localhost")
}

// checkLocalhost returns why ports cannot be exposed on a host's address.
func checkLocalhost(address string) error {
	bare := address
	if strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]") {
		bare = address[1 : len(address)-1]
	}
	switch strings.ToLower(bare) {
	case "localhost", "127.0.0.1", "::1":
		return nil
	}
	return fmt.Errorf("%w: cannot expose on %q: ports are put on localhost only (127.0.0.1 and ::1), so that nobody on the network reaches a guest by mistake; "+
		"to publish one, put a reverse proxy such as nginx or caddy in front of it", ErrInvalidSpec, address)
}

// portRange is ports in a row, both ends included.
type portRange struct{ first, last int }

func (r portRange) count() int { return r.last - r.first + 1 }

func parseRange(field, text string) (portRange, error) {
	from, to, ranged := strings.Cut(text, "-")
	first, err := parsePort(field, from)
	if err != nil || !ranged {
		return portRange{first, first}, err
	}
	last, err := parsePort(field, to)
	if err != nil {
		return portRange{}, err
	}
	if last < first {
		return portRange{}, fmt.Errorf("%w: the range %s ends before it begins", ErrInvalidSpec, text)
	}
	return portRange{first, last}, nil
}

func parsePort(field, text string) (int, error) {
	port, err := strconv.ParseUint(text, 10, 31)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%w: %q is no port number: write %s, such as 8080:80", ErrInvalidSpec, text, specForm)
	}
	if !validPort(int(port)) {
		return 0, &PortError{Field: field, Port: int(port)}
	}
	return int(port), nil
}

// String writes the Spec as ParseSpec reads it.
func (s Spec) String() string {
	var b strings.Builder
	ports := func(first int) {
		fmt.Fprint(&b, first)
		if s.Count > 1 {
			fmt.Fprintf(&b, "-%d", first+s.Count-1)
		}
	}
	if s.HostPort != 0 {
		ports(s.HostPort)
		b.WriteByte(':')
	}
	ports(s.GuestPort)
	if s.Protocol == UDP {
		b.WriteString("/udp")
	}
	return b.String()
}

// Requests returns a Request for each of the ports.
func (s Spec) Requests() []Request {
	reqs := make([]Request, max(s.Count, 1))
	for i := range reqs {
		reqs[i] = Request{Protocol: cmp.Or(s.Protocol, TCP), GuestPort: s.GuestPort + i}
		if s.HostPort != 0 {
			reqs[i].HostPort, reqs[i].HostPortSet = s.HostPort+i, true
		}
	}
	return reqs
}
