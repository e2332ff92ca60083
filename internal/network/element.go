package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// port is a port of localhost. It is the key of the map of forwards and of the
// sets that count their bytes.
type port struct {
	protocol forward.Protocol
	number   uint16
}

func portOf(m forward.Mapping) port { return port{m.Protocol, m.HostPort} }

func protocolNumber(p forward.Protocol) (uint8, bool) {
	switch p {
	case forward.TCP:
		return unix.IPPROTO_TCP, true
	case forward.UDP:
		return unix.IPPROTO_UDP, true
	}
	return 0, false
}

func protocolOf(number uint8) (forward.Protocol, bool) {
	switch number {
	case unix.IPPROTO_TCP:
		return forward.TCP, true
	case unix.IPPROTO_UDP:
		return forward.UDP, true
	}
	return "", false
}

// key lays a port out as the kernel wants it: each field in network byte order at
// the start of a 32-bit word.
func (p port) key() ([]byte, error) {
	number, ok := protocolNumber(p.protocol)
	if !ok {
		return nil, fmt.Errorf("forward: unknown protocol %q", p.protocol)
	}
	key := make([]byte, 8)
	key[0] = number
	binary.BigEndian.PutUint16(key[4:], p.number)
	return key, nil
}

func decodePort(key []byte) (port, bool) {
	if len(key) < 6 {
		return port{}, false
	}
	protocol, ok := protocolOf(key[0])
	if !ok {
		return port{}, false
	}
	return port{protocol, binary.BigEndian.Uint16(key[4:])}, true
}

// encodeMapping returns a mapping's element of the map.
func encodeMapping(m forward.Mapping) (nftables.SetElement, error) {
	key, err := portOf(m).key()
	if err != nil {
		return nftables.SetElement{}, err
	}
	if !m.Guest.Addr().Is4() {
		return nftables.SetElement{}, fmt.Errorf("forward: %s is not an IPv4 address", m.Guest.Addr())
	}
	val := make([]byte, 8)
	copy(val, m.Guest.Addr().AsSlice())
	binary.BigEndian.PutUint16(val[4:], m.Guest.Port())
	return nftables.SetElement{Key: key, Val: val}, nil
}

func decodeMapping(e nftables.SetElement) (forward.Mapping, bool) {
	p, ok := decodePort(e.Key)
	if !ok || len(e.Val) < 6 {
		return forward.Mapping{}, false
	}
	guest := netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.Val[:4])), binary.BigEndian.Uint16(e.Val[4:]))
	return forward.Mapping{Protocol: p.protocol, HostPort: p.number, Guest: guest}, true
}

// batch are the elements of mappings: those of the map, and those of each of the sets
// that count bytes.
type batch struct{ mapped, counted []nftables.SetElement }

func newBatch(mappings []forward.Mapping) (batch, error) {
	var b batch
	seen := make(map[forward.Mapping]bool, len(mappings))
	for _, m := range mappings {
		if seen[m] {
			continue // what is removed cannot be removed again
		}
		seen[m] = true
		e, err := encodeMapping(m)
		if err != nil {
			return batch{}, err
		}
		b.mapped = append(b.mapped, e)
		b.counted = append(b.counted, nftables.SetElement{Key: e.Key})
	}
	return b, nil
}

// add puts the elements into a transaction. An element that is there already is
// left as it is; one that leads elsewhere makes the transaction fail with EBUSY.
func (b batch) add(conn *nftables.Conn) error {
	if err := conn.SetAddElements(setRef(forwardsMap), b.mapped); err != nil {
		return err
	}
	if err := conn.SetAddElements(setRef(toGuestsSet), b.counted); err != nil {
		return err
	}
	return conn.SetAddElements(setRef(fromGuestsSet), b.counted)
}

// remove puts the elements' removal into a transaction. They are added first: so the
// removal of what is not there is no error, and what leads elsewhere stays.
func (b batch) remove(conn *nftables.Conn) error {
	if err := b.add(conn); err != nil {
		return err
	}
	if err := conn.SetDeleteElements(setRef(forwardsMap), b.mapped); err != nil {
		return err
	}
	if err := conn.SetDeleteElements(setRef(toGuestsSet), b.counted); err != nil {
		return err
	}
	return conn.SetDeleteElements(setRef(fromGuestsSet), b.counted)
}

// setRef is what a transaction needs to know of a set that is there.
func setRef(describe func(*nftables.Table) *nftables.Set) *nftables.Set {
	return describe(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
}

// listLimit is up to how many elements are looked up one by one. Listing all costs as
// much as some, and those of all processes are in it.
const listLimit = 64

// readElements reads the elements of ports from a set. What is not there is
// not in the result, nor is anything if there is no table.
func readElements(conn *nftables.Conn, set *nftables.Set, ports []port) (map[port]nftables.SetElement, error) {
	found := make(map[port]nftables.SetElement, len(ports))
	if len(ports) > listLimit {
		all, err := conn.GetSetElements(set)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
		for _, e := range all {
			if p, ok := decodePort(e.Key); ok {
				found[p] = e
			}
		}
		return found, nil
	}
	for _, p := range ports {
		key, err := p.key()
		if err != nil {
			return nil, err
		}
		elements, err := conn.FindSetElements(set, []nftables.SetElement{{Key: key}})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			if got, ok := decodePort(e.Key); ok && got == p {
				found[p] = e
			}
		}
	}
	return found, nil
}
