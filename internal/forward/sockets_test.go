package forward

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestParseSockets(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 06 00000000:00000000 03:00000F9D 00000000     0        0 0 3 0000000000000000
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1
   3: 0100007F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1
`
	var got []socket
	if err := parseSockets(strings.NewReader(text), func(s socket) { got = append(got, s) }); err != nil {
		t.Fatal(err)
	}
	want := []socket{
		{netip.MustParseAddrPort("127.0.0.1:8080"), stateListen, 12345},
		{netip.MustParseAddrPort("127.0.0.1:8080"), stateTimeWait, 0},
		{netip.MustParseAddrPort("[::1]:80"), stateListen, 777},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
}

func TestSocketsOfThisHost(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		if got := Holder(TCP, port); !strings.Contains(got, "pid") {
			t.Errorf("%s is held by %q", l.Addr(), got)
		}
	}
}

func FuzzParseSockets(f *testing.F) {
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		if text, err := os.ReadFile(file); err == nil {
			f.Add(string(text))
		}
	}
	f.Add("0: 0100007F:1F90 0:0 0A 0 0 0 0 0 0 1")
	f.Fuzz(func(t *testing.T, text string) {
		// A line too long is the one error there is.
		_ = parseSockets(strings.NewReader(text), func(s socket) {
			if !s.local.IsValid() {
				t.Errorf("bad socket %v from %q", s, text)
			}
		})
	})
}
