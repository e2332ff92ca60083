package guestapi

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// payloads are one of each kind with all that it may have, and a zero one of each.
func payloads() (full, zero []Payload) {
	full = []Payload{
		&Failure{Error: "no such file", Kind: KindNotExist},
		&Clock{Time: time.Unix(-5, 7), Step: -time.Hour},
		&Identity{
			Hostname: "one", Time: time.Unix(1<<32, 1), Entropy: []byte{0, 1}, HostKey: []byte("key"), AuthorizedKeys: []byte("keys\n"),
			MachineID: "0123", Env: []string{"A=b", "", "C="}, GrowRoot: true, Network: &Network{
				MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Address: netip.MustParsePrefix("198.18.0.3/31"), Gateway: netip.MustParseAddr("198.18.0.2"),
				Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1%eth0")}, Search: []string{"example.org"},
			},
		},
		&Identity{Network: &Network{}},
		&Exec{
			Argv: []string{"sh", "", "\x00"}, Dir: "/", Env: []string{"A=b"}, User: "me:us", Stdin: true,
			Terminal: &Terminal{Term: "xterm", Columns: 80, Rows: -1}, Detach: true, PowerOff: true,
		},
		&Main{ID: "b", Replaces: "a", Exec: Exec{Argv: []string{"httpd", "-f"}, User: "web"}},
		&MainState{ID: "b", PID: 7, Started: time.Unix(9, 1), Ended: time.Unix(10, 0), Status: ExitStatus{Code: 137, Signal: "KILL"}},
		&MainSignal{Number: 15},
		&Files{Op: FilesPack, Path: "/etc", Mode: 0o644, Follow: true},
		&Folder{Path: "/work", ReadOnly: true},
		&Listeners{TCP: map[uint16]Scope{22: ScopeNetwork, 65535: ScopeLoopback}, UDP: map[uint16]Scope{0: ""}},
	}
	for _, p := range full {
		zero = append(zero, reflect.New(reflect.TypeOf(p).Elem()).Interface().(Payload))
	}
	return full, zero
}

func TestPayloads(t *testing.T) {
	full, got := payloads()
	for i, want := range full {
		encoded := Encode(want)
		if err := Decode(encoded, got[i]); err != nil || !reflect.DeepEqual(got[i], want) {
			t.Errorf("%+v became %+v, %v", want, got[i], err)
		}
		for n := range encoded {
			_, parts := payloads()
			if err := Decode(encoded[:n], parts[i]); !errors.Is(err, errPayload) {
				t.Fatalf("%d bytes of %d of %T: %v", n, len(encoded), want, err)
			}
		}
		_, more := payloads()
		if err := Decode(append(encoded, 0), more[i]); !errors.Is(err, errPayload) {
			t.Errorf("%T with something behind it: %v", want, err)
		}
	}
	_, zero := payloads()
	for _, want := range zero {
		if l, ok := want.(*Listeners); ok {
			l.TCP, l.UDP = map[uint16]Scope{}, map[uint16]Scope{} // never nil when it was decoded
		}
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface().(Payload)
		if err := Decode(Encode(want), got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
	}
}

// Whatever comes is refused, or is what encodes to what means the same.
func FuzzDecode(f *testing.F) {
	full, zero := payloads()
	for i := range full {
		f.Add(uint8(i), Encode(full[i]))
		f.Add(uint8(i), Encode(zero[i]))
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		_, first := payloads()
		_, second := payloads()
		i := int(kind) % len(first)
		before := bytes.Clone(b)
		if Decode(b, first[i]) != nil {
			return
		}
		encoded := Encode(first[i])
		if err := Decode(encoded, second[i]); err != nil || !reflect.DeepEqual(first[i], second[i]) {
			t.Errorf("%x: %+v became %+v, %v", b, first[i], second[i], err)
		}
		if !bytes.Equal(b, before) {
			t.Error("what is decoded was changed")
		}
	})
}
