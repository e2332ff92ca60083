package guest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 350012C6:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0100007F:A3B2 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
   4: 00000000:FFFF 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0
`

const tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 0
   1: 00000000000000000000000000000000:0052 00000000000000000000000000000000:0000 0A 0
   2: 0000000000000000FFFF00000100007F:0053 00000000000000000000000000000000:0000 0A 0
   3: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0
`

const udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  413: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
  414: 0100007F:9C40 0100007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
  415: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
  416: FB0000E0:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
`

// What the kernel writes is read when it answers no questions.
func TestSocketsFromText(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"tcp": tcpTable, "udp": udpTable} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	table := &socketTable{proc: dir, mute: true}
	const loopback, network = guestapi.ScopeLoopback, guestapi.ScopeNetwork
	tcp := map[uint16]guestapi.Scope{8000: loopback, 80: network, 8001: network}
	udp := map[uint16]guestapi.Scope{53: loopback, 68: network}
	got, err := table.report() // a kernel without IPv6
	if err != nil || !maps.Equal(got.TCP, tcp) || !maps.Equal(got.UDP, udp) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tcp6"), []byte(tcp6Table), 0o644); err != nil {
		t.Fatal(err)
	}
	maps.Copy(tcp, map[uint16]guestapi.Scope{81: loopback, 82: network, 83: loopback}) // 80 stays the wider
	if got, err = table.report(); err != nil || !maps.Equal(got.TCP, tcp) {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzReadSockets(f *testing.F) {
	f.Add([]byte(tcpTable), true)
	f.Add([]byte(tcp6Table), true)
	f.Add([]byte(udpTable), false)
	f.Add([]byte("\n0: :: 0 0A\n1: 0:0\n"), true)
	f.Fuzz(func(t *testing.T, table []byte, tcp bool) {
		state := procClosed
		if tcp {
			state = procListen
		}
		whole, err := readSockets(bytes.NewReader(table), state, nil)
		if err != nil && !errors.Is(err, bufio.ErrTooLong) {
			t.Fatal(err)
		}
		pieces, piecesErr := readSockets(iotest.OneByteReader(bytes.NewReader(table)), state, nil)
		if !slices.Equal(whole, pieces) || !errors.Is(piecesErr, err) {
			t.Fatalf("%v, %v in one piece, %v, %v in many", whole, err, pieces, piecesErr)
		}
		if len(whole) > bytes.Count(table, []byte("\n")) {
			t.Fatalf("%d sockets in %d lines", len(whole), bytes.Count(table, []byte("\n")))
		}
	})
}

func FuzzParseDiag(f *testing.F) {
	message := func(kind uint16, body []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		return append(append(b, make([]byte, 10)...), body...)
	}
	v6 := append(make([]byte, inetDiagMessageLen), 5, 0, inetDiagV6Only, 0, 1, 0, 0, 0)
	v6[0] = unix.AF_INET6
	f.Add(append(message(sockDiagByFamily, v6), message(unix.NLMSG_DONE, make([]byte, 4))...))
	f.Add(message(unix.NLMSG_ERROR, []byte{0xfe, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, b []byte) {
		sockets, done, err := parseDiag(b, nil)
		if len(sockets)*(unix.SizeofNlMsghdr+inetDiagMessageLen) > len(b) {
			t.Fatalf("%d sockets in %d bytes", len(sockets), len(b))
		}
		if err != nil && len(sockets) > 0 {
			t.Fatal("sockets and an error")
		}
		if again, doneAgain, _ := parseDiag(b, nil); !slices.Equal(again, sockets) || done != doneAgain {
			t.Fatal("not the same again")
		}
	})
}

func TestApplyModes(t *testing.T) {
	settings := unix.Termios{Lflag: unix.ECHO | unix.ICANON, Oflag: unix.OPOST}
	var modes []byte
	for _, m := range []struct {
		mode  byte
		value uint32
	}{{53, 0}, {3, 8}, {1, 255}, {72, 1}, {36, 1}, {42, 1}, {129, 38400}, {149, 7}} {
		modes = binary.BigEndian.AppendUint32(append(modes, m.mode), m.value)
	}
	applyModes(&settings, append(append(modes, 0), 51, 0, 0, 0, 0)) // nothing counts after the end
	want := unix.Termios{Lflag: unix.ICANON, Oflag: unix.OPOST | unix.ONLCR, Iflag: unix.ICRNL | unix.IUTF8}
	want.Cc[unix.VERASE] = 8
	if settings != want {
		t.Errorf("got %+v, want %+v", settings, want)
	}
}

func FuzzApplyModes(f *testing.F) {
	f.Add([]byte{53, 0, 0, 0, 0, 0})
	f.Add([]byte{53, 0, 0})
	f.Fuzz(func(t *testing.T, modes []byte) {
		var once unix.Termios
		applyModes(&once, modes)
		twice := once
		applyModes(&twice, modes)
		if once != twice {
			t.Fatal("not the same again")
		}
		if once.Ispeed != 0 || once.Ospeed != 0 || once.Cflag != 0 {
			t.Fatalf("changed what has no mode: %+v", once)
		}
	})
}
