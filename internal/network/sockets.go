package network

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sockets are the Host's connections to the kernel's packet filter, opened when
// first needed. They are kept because closing one makes the kernel wait, for ten
// milliseconds or so, until it has freed what was last removed, and everybody
// else's changes wait with it.
type sockets struct {
	mu    sync.Mutex // held for a whole transaction: the connection buffers it
	rules *nftables.Conn
	flows *netlink.Handle
}

// change runs f with the connection to nftables. No two run at once.
func (s *sockets) change(f func(*nftables.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rules == nil {
		conn, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		s.rules = conn
	}
	err := f(s.rules)
	if errors.Is(err, unix.ENOBUFS) {
		// Answers were lost. Those that were not must not be taken for the next one's.
		err = errors.Join(err, s.rules.CloseLasting())
		s.rules = nil
	}
	return err
}

// conntrack returns the connection to the kernel's connection tracking.
func (s *sockets) conntrack() (*netlink.Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flows == nil {
		handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return nil, fmt.Errorf("open connection tracking: %w", err)
		}
		s.flows = handle
	}
	return s.flows, nil
}

// Close closes what the Host keeps open. It disturbs nobody; a Host that is used
// again opens it again.
func (h *Host) Close() error {
	s := &h.sockets
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flows != nil {
		s.flows.Close()
		s.flows = nil
	}
	if s.rules == nil {
		return nil
	}
	err := s.rules.CloseLasting()
	s.rules = nil
	return err
}
