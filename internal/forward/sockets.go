package forward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tcpState is a TCP socket's state, numbered as the kernel does.
type tcpState uint8

const (
	stateFinWait1 tcpState = 4
	stateFinWait2 tcpState = 5
	stateTimeWait tcpState = 6
	stateLastAck  tcpState = 9
	stateListen   tcpState = 10
	stateClosing  tcpState = 11
)

// over tells whether the socket's program is done with it, and only the kernel
// still waits for the other end.
func (s tcpState) over() bool {
	switch s {
	case stateFinWait1, stateFinWait2, stateTimeWait, stateLastAck, stateClosing:
		return true
	}
	return false
}

// socket is one socket of the host.
type socket struct {
	local netip.AddrPort
	state tcpState // of a UDP socket it says nothing here
	inode uint64   // 0 once its program is done with it
}

// localhostSockets returns a protocol's sockets that have port on a local address
// through which 127.0.0.1 or ::1 is reached.
func localhostSockets(protocol Protocol, port int) ([]socket, error) {
	var found []socket
	for _, family := range []string{"", "6"} {
		f, err := os.Open("/proc/thread-self/net/" + string(protocol) + family)
		if os.IsNotExist(err) {
			continue // no IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		err = parseSockets(f, func(s socket) {
			addr := s.local.Addr().Unmap()
			if int(s.local.Port()) == port && (addr.IsLoopback() || addr.IsUnspecified()) {
				found = append(found, s)
			}
		})
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
	}
	return found, nil
}

// parseSockets reads the format of /proc/net/tcp, tcp6, udp and udp6. Lines that
// are not in it are skipped.
func parseSockets(r io.Reader, each func(socket)) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if s, ok := parseSocket(lines.Text()); ok {
			each(s)
		}
	}
	return lines.Err()
}

func parseSocket(line string) (socket, bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return socket{}, false
	}
	local, ok := parseHexAddrPort(fields[1])
	if !ok {
		return socket{}, false
	}
	state, err := strconv.ParseUint(fields[3], 16, 8)
	if err != nil {
		return socket{}, false
	}
	inode, err := strconv.ParseUint(fields[9], 10, 64)
	if err != nil {
		return socket{}, false
	}
	return socket{local: local, state: tcpState(state), inode: inode}, true
}

// parseHexAddrPort reads "0100007F:1F90": the address as 32-bit words in the
// machine's byte order, the port as a number.
func parseHexAddrPort(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(addr)
	if err != nil || (len(raw) != 4 && len(raw) != 16) {
		return netip.AddrPort{}, false
	}
	for word := raw; len(word) > 0; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	ip, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip, uint16(n)), true
}

// Holder names the process that holds a port of localhost, as far as this
// process may see: "nginx, pid 812".
func Holder(protocol Protocol, port int) string {
	sockets, err := localhostSockets(protocol, port)
	if err != nil {
		return ""
	}
	for _, s := range sockets {
		// Every UDP socket holds its port; of TCP's the connections do not.
		if protocol == UDP || s.state == stateListen {
			return processWithSocket(s.inode)
		}
	}
	return ""
}

// processWithSocket looks through the open files of all processes.
func processWithSocket(inode uint64) string {
	want := fmt.Sprintf("socket:[%d]", inode)
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return ""
	}
	for _, dir := range dirs {
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // gone, or not ours to see
		}
		for _, file := range files {
			if target, err := os.Readlink(filepath.Join(dir, file.Name())); err != nil || target != want {
				continue
			}
			process := filepath.Dir(dir)
			pid := filepath.Base(process)
			name, err := os.ReadFile(filepath.Join(process, "comm"))
			if err != nil {
				return "pid " + pid
			}
			return fmt.Sprintf("%s, pid %s", bytes.TrimSpace(name), pid)
		}
	}
	return ""
}
