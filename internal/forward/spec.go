package forward

import (
	"fmt"
	"strconv"
	"strings"
)

// Spec is a pair of ports as people write it: [HOST:]GUEST.
type Spec struct {
	HostPort  int // 0: any
	GuestPort int
}

// ParseSpec reads a Spec. A port out of range is a *PortError.
func ParseSpec(text string) (Spec, error) {
	host, guest, both := strings.Cut(text, ":")
	if !both {
		host, guest = "", text
	}
	var spec Spec
	var err error
	if spec.GuestPort, err = parsePort("guest_port", guest); err != nil {
		return Spec{}, fmt.Errorf("port %q: %w", text, err)
	}
	if !both {
		return spec, nil
	}
	if spec.HostPort, err = parsePort("host_port", host); err != nil {
		return Spec{}, fmt.Errorf("port %q: %w", text, err)
	}
	return spec, nil
}

func parsePort(field, text string) (int, error) {
	port, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%q is no number: write [HOST:]GUEST, such as 8080:80", text)
	}
	if !validPort(port) {
		return 0, &PortError{Field: field, Port: port}
	}
	return port, nil
}
