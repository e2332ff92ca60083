package network

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/smolvm/smolvm/internal/forward"
)

// Traffic implements forward.Table. Counted are packets as this host's IP layer
// sees them, with their headers; those of what the kernel has joined into one packet
// count once. What the kernel counts outlives every process, but not the table: if
// others delete that, counting begins anew.
func (t table) Traffic(_ context.Context, mappings ...forward.Mapping) ([]forward.Traffic, error) {
	traffic := make([]forward.Traffic, len(mappings))
	ports := make([]port, len(mappings))
	for i, m := range mappings {
		ports[i] = portOf(m)
	}
	var mapped, to, from map[port]nftables.SetElement
	err := t.host.sockets.change(func(conn *nftables.Conn) (err error) {
		if mapped, err = readElements(conn, setRef(forwardsMap), ports); err != nil {
			return err
		}
		if to, err = readElements(conn, setRef(toGuestsSet), ports); err != nil {
			return err
		}
		from, err = readElements(conn, setRef(fromGuestsSet), ports)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read forwards' traffic: %w", err)
	}
	used := false
	for i, m := range mappings {
		e := mapped[ports[i]]
		if there, ok := decodeMapping(e); !ok || there != m {
			continue
		}
		opened := countOf(e)
		traffic[i] = forward.Traffic{
			Total: int64(opened.Packets),
			// The map counts the packets that open connections, the set all others.
			ToGuest:   int64(opened.Bytes + countOf(to[ports[i]]).Bytes),
			FromGuest: int64(countOf(from[ports[i]]).Bytes),
		}
		used = used || opened.Packets > 0
	}
	if !used {
		return traffic, nil // and the kernel's connections need not be listed
	}
	open, err := t.open()
	if err != nil {
		return nil, fmt.Errorf("read forwards' traffic: %w", err)
	}
	for i, m := range mappings {
		traffic[i].Open = open[m]
	}
	return traffic, nil
}

// open counts the open connections through each mapping.
func (t table) open() (map[forward.Mapping]int, error) {
	all, err := t.host.listFlows(flows{to: netip.AddrPortFrom(localhost(), 0)})
	if err != nil {
		return nil, err
	}
	count := make(map[forward.Mapping]int)
	for _, f := range all {
		if protocol, ok := protocolOf(f.protocol); ok && f.open() {
			count[forward.Mapping{Protocol: protocol, HostPort: f.to.Port(), Guest: f.answers}]++
		}
	}
	return count, nil
}

func countOf(e nftables.SetElement) expr.Counter {
	if e.Counter == nil {
		return expr.Counter{}
	}
	return *e.Counter
}
