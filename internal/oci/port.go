package oci

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ExposedPorts returns "NUMBER/PROTOCOL" for each port, once, sorted by number, as Config has them,
// and those of the texts that are no port. The protocol is TCP where none is said.
func ExposedPorts(texts []string) (ports, others []string) {
	type port struct {
		number   uint64
		protocol string
	}
	var list []port
	for _, text := range texts {
		number, protocol, found := strings.Cut(text, "/")
		if !found {
			protocol = "tcp"
		}
		protocol = strings.ToLower(protocol)
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
			others = append(others, text)
			continue
		}
		list = append(list, port{n, protocol})
	}
	slices.SortFunc(list, func(a, b port) int {
		return cmp.Or(cmp.Compare(a.number, b.number), strings.Compare(a.protocol, b.protocol))
	})
	for _, p := range slices.Compact(list) {
		ports = append(ports, fmt.Sprintf("%d/%s", p.number, p.protocol))
	}
	return ports, others
}
