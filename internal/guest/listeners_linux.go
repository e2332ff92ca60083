package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// How often a watch looks: quickly after a command was started, which may well
// begin to listen, and then less and less often.
const (
	watchFast = 20 * time.Millisecond
	watchSlow = 250 * time.Millisecond
)

// watch reports the guest's listeners to the host, now and whenever they change,
// until the connection ends.
func (s *Server) watch(ctx context.Context, conn ssh.Conn) {
	defer s.survive()
	var last *guestapi.Listeners
	interval := watchFast
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		started := s.nudge.wait()
		select {
		case <-ctx.Done():
			return
		case <-started:
			interval = watchFast
		case <-timer.C:
		}
		now, err := tcpListeners("/proc/net")
		if err != nil {
			s.log.Warn("could not list the listeners", "error", err)
		} else if last == nil || !maps.Equal(now.TCP, last.TCP) {
			payload, _ := json.Marshal(now) // numbers and strings: cannot fail
			if _, _, err := conn.SendRequest(guestapi.RequestListeners, false, payload); err != nil {
				return
			}
			last = &now
		}
		timer.Reset(interval)
		interval = min(interval*3/2, watchSlow)
	}
}

// nudge wakes those who wait for something to happen.
type nudge struct {
	mu sync.Mutex
	ch chan struct{}
}

func newNudge() *nudge {
	return &nudge{ch: make(chan struct{})}
}

// wait returns a channel that is closed by the next give.
func (n *nudge) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ch
}

func (n *nudge) give() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.ch)
	n.ch = make(chan struct{})
}

// tcpListeners reads the guest's TCP listeners. A kernel without IPv6 is fine.
func tcpListeners(dir string) (guestapi.Listeners, error) {
	l := guestapi.Listeners{TCP: make(map[uint16]guestapi.Scope)}
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open(dir + "/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return l, err
		}
		err = readListeners(f, l.TCP)
		f.Close()
		if err != nil {
			return l, err
		}
	}
	return l, nil
}

// readListeners adds the listeners of a table in the format of /proc/net/tcp. The
// kernel lists all listeners first, so it reads no further than the first line
// that is none: a busy guest has thousands of others.
func readListeners(r io.Reader, into map[uint16]guestapi.Scope) error {
	var buf [4096]byte
	var line []byte
	header := true
	for {
		n, err := r.Read(buf[:])
		line = append(line, buf[:n]...)
		for {
			one, rest, ok := bytes.Cut(line, []byte("\n"))
			if !ok {
				break
			}
			line = rest
			if header {
				header = false
				continue
			}
			addr, listens, ok := parseSocket(one)
			if ok && !listens {
				return nil
			}
			if ok && into[addr.Port()] != guestapi.ScopeNetwork {
				into[addr.Port()] = scopeOf(addr.Addr())
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// scopeOf tells from where a listener at addr can be reached. One on the IPv6
// wildcard counts as reachable by IPv4, too: the table does not tell.
func scopeOf(addr netip.Addr) guestapi.Scope {
	if addr.Unmap().IsLoopback() {
		return guestapi.ScopeLoopback
	}
	return guestapi.ScopeNetwork
}

// parseSocket reads the local address from a line of /proc/net/tcp or tcp6, and
// whether the socket listens.
func parseSocket(line []byte) (local netip.AddrPort, listens, ok bool) {
	fields := bytes.Fields(line)
	if len(fields) < 4 {
		return local, false, false
	}
	host, port, found := bytes.Cut(fields[1], []byte(":"))
	if !found {
		return local, false, false
	}
	number, err := strconv.ParseUint(string(port), 16, 16)
	if err != nil {
		return local, false, false
	}
	// The address is printed as 32-bit words in the machine's byte order.
	raw := make([]byte, hex.DecodedLen(len(host)))
	if _, err := hex.Decode(raw, host); err != nil || len(raw) != 4 && len(raw) != 16 {
		return local, false, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	const listen = "0A"
	return netip.AddrPortFrom(addr, uint16(number)), string(fields[3]) == listen, true
}
