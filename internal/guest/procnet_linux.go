package guest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
)

// procNet is where the kernel lists sockets as text.
const procNet = "/proc/net"

// procSockets reads the sockets of one protocol that are in one state, as the kernel
// writes it. A kernel without IPv6 is fine.
func procSockets(dir, protocol, state string) ([]socket, error) {
	var sockets []socket
	for _, name := range []string{protocol, protocol + "6"} {
		f, err := os.Open(dir + "/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sockets, err = readSockets(f, state, sockets)
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return sockets, nil
}

// readSockets appends the sockets of a table in the format of /proc/net/tcp. Of TCP
// the kernel lists all listeners first, so it reads no further than the first line that
// is none: a busy guest has thousands of others.
func readSockets(r io.Reader, state string, sockets []socket) ([]socket, error) {
	lines := bufio.NewScanner(r)
	lines.Scan() // the headings
	for lines.Scan() {
		local, is, ok := parseSocket(lines.Bytes())
		switch {
		case ok && is == state:
			sockets = append(sockets, socket{local: local})
		case ok && state == procListen:
			return sockets, nil
		}
	}
	return sockets, lines.Err()
}

// The states of sockets, as the kernel writes them.
const (
	procClosed = "07" // of a UDP socket: not connected
	procListen = "0A"
)

// parseSocket reads the local address and the state from a line of a table.
func parseSocket(line []byte) (local netip.AddrPort, state string, ok bool) {
	fields := bytes.Fields(line)
	if len(fields) < 4 {
		return local, "", false
	}
	host, port, found := bytes.Cut(fields[1], []byte(":"))
	if !found {
		return local, "", false
	}
	number, err := strconv.ParseUint(string(port), 16, 16)
	if err != nil {
		return local, "", false
	}
	// The address is printed as 32-bit words in the machine's byte order.
	raw := make([]byte, hex.DecodedLen(len(host)))
	if _, err := hex.Decode(raw, host); err != nil || len(raw) != 4 && len(raw) != 16 {
		return local, "", false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(number)), string(fields[3]), true
}
