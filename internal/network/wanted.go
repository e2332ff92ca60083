package network

import (
	"net/netip"
	"sync"

	"github.com/smolvm/smolvm/internal/forward"
)

// wanted are the mappings that this Host has put into the table, and will put in
// again if somebody else removes them.
type wanted struct {
	mu     sync.Mutex
	guests map[port]netip.AddrPort
	// lost are those whose port was found to lead elsewhere, and that was said.
	lost map[port]bool
}

func (w *wanted) add(mappings []forward.Mapping) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.guests == nil {
		w.guests, w.lost = make(map[port]netip.AddrPort), make(map[port]bool)
	}
	for _, m := range mappings {
		w.guests[portOf(m)] = m.Guest
		delete(w.lost, portOf(m))
	}
}

func (w *wanted) forget(mappings []forward.Mapping) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range mappings {
		if w.guests[portOf(m)] == m.Guest {
			w.drop(portOf(m))
		}
	}
}

// forgetGuests forgets the mappings to guests for which gone is true.
func (w *wanted) forgetGuests(gone func(guest netip.Addr) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, guest := range w.guests {
		if gone(guest.Addr()) {
			w.drop(p)
		}
	}
}

// has tells whether a mapping is wanted.
func (w *wanted) has(m forward.Mapping) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.guests[portOf(m)] == m.Guest
}

func (w *wanted) drop(p port) {
	delete(w.guests, p)
	delete(w.lost, p)
}

// compare returns the wanted mappings that are not in a table, and those
// whose port leads elsewhere there and that have not been returned as such before.
func (w *wanted) compare(table map[port]netip.AddrPort) (missing, lost []forward.Mapping) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, guest := range w.guests {
		m := forward.Mapping{Protocol: p.protocol, HostPort: p.number, Guest: guest}
		switch table[p] {
		case guest:
			delete(w.lost, p)
		case netip.AddrPort{}:
			delete(w.lost, p)
			missing = append(missing, m)
		default:
			if !w.lost[p] {
				w.lost[p] = true
				lost = append(lost, m)
			}
		}
	}
	return missing, lost
}
