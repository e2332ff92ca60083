package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"

	"github.com/google/renameio/v2"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const stateFile = "state.json"

// state is what must be remembered to leave the host as it was found. It is used
// under the lock only.
type state struct {
	path   string
	unused bool // no VM is left, so nothing needs remembering
	// Borrowed are the interfaces on which forwarding was switched on for guests.
	Borrowed []string `json:"borrowed"`
	// Indexes are theirs, by which those are known again that are renamed.
	Indexes map[string]int `json:"indexes"`
}

func loadState(path string) (*state, error) {
	s := &state{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read network state: %w", err)
	}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read network state: %s: %w", path, err)
	}
	return s, nil
}

func (s *state) save() error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save network state: %w", err)
	}
	if err := renameio.WriteFile(s.path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save network state: %w", err)
	}
	return nil
}

func (s *state) remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network state: %w", err)
	}
	return nil
}

// wanted returns the interfaces that forwarding has to be switched on for: those by
// which this host reaches the world, and where the answers to guests arrive. The
// kernel asks an interface only for what comes in by it.
func (s *state) wanted() ([]string, error) {
	if everywhere, err := forwardsEverywhere(); err != nil || everywhere {
		return nil, err
	}
	uplinks, err := uplinks()
	if err != nil {
		return nil, err
	}
	names := slices.Clone(s.Borrowed)
	for i, name := range names {
		if now, ok := uplinks[s.Indexes[name]]; ok {
			names[i] = now // it was renamed, or not
		}
	}
	for _, name := range uplinks {
		if slices.Contains(names, name) {
			continue
		}
		value, err := readSetting(ipv4Conf(name, "forwarding"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // went this moment
		}
		if err != nil {
			return nil, err
		}
		if value == "0" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// borrow remembers the interfaces. It comes before the guard, which comes before
// the switch.
func (s *state) borrow(names []string) error {
	if slices.Equal(names, s.Borrowed) {
		return nil
	}
	s.Borrowed, s.Indexes = names, make(map[string]int)
	for _, name := range names {
		if link, err := netlink.LinkByName(name); err == nil {
			s.Indexes[name] = link.Attrs().Index
		}
	}
	return s.save()
}

// switchOn switches forwarding on.
func (s *state) switchOn() error {
	for _, name := range s.Borrowed {
		err := writeSettings([]setting{{ipv4Conf(name, "forwarding"), "1"}})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// giveBack switches forwarding off where it was off, unless someone has
// meanwhile made the whole host a router.
func (s *state) giveBack() error {
	everywhere, err := forwardsEverywhere()
	if err != nil {
		return err
	}
	if !everywhere {
		for _, name := range s.Borrowed {
			err := writeSettings([]setting{{ipv4Conf(name, "forwarding"), "0"}})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	s.Borrowed = nil
	s.unused = true
	return s.remove()
}

func forwardsEverywhere() (bool, error) {
	value, err := readSetting(ipv4Conf("all", "forwarding"))
	return value == "1", err
}

// uplinks are the interfaces with a default route, or half of one as VPNs have it: their
// names by their indexes.
func uplinks() (map[int]string, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	names := make(map[int]string)
	add := func(index int) error {
		if names[index] != "" {
			return nil
		}
		link, err := netlink.LinkByIndex(index)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look up interface: %w", err)
		}
		name := link.Attrs().Name
		if _, ours := slotOf(name); !ours && link.Attrs().Flags&net.FlagLoopback == 0 {
			names[index] = name
		}
		return nil
	}
	for _, r := range routes {
		if r.Dst != nil {
			if bits, _ := r.Dst.Mask.Size(); bits > 1 {
				continue
			}
		}
		hops := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			hops = append(hops, hop.LinkIndex)
		}
		for _, index := range hops {
			if index == 0 {
				continue
			}
			if err := add(index); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// dump repeats a listing that a concurrent change made incomplete.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for {
		got, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
}
