package network

import (
	"net"
	"net/netip"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
)

// TestDetach plays a VM whose owner died while its monitor still holds the TAP: the
// interface is open, and nobody will close it.
func TestDetach(t *testing.T) {
	h := testHost(t)
	bystander := attach(t, h, Attachment{VM: "bystander"})
	orphan := attach(t, h, Attachment{VM: "orphan", Egress: true})
	for port, guest := range map[uint16]netip.Addr{8000: orphan.GuestAddr, 8001: bystander.GuestAddr} {
		must(t, h.Table().Add(t.Context(), forward.Mapping{
			Protocol: forward.TCP, HostPort: port, Guest: netip.AddrPortFrom(guest, 80),
		}))
	}

	// Another name at that index, or no interface there: it is somebody else's, or gone.
	must(t, h.Detach(t.Context(), "smol9", orphan.Index))
	must(t, h.Detach(t.Context(), orphan.Name, orphan.Index+1000))
	if _, err := net.InterfaceByIndex(orphan.Index); err != nil {
		t.Fatalf("a wrong name detached it: %v", err)
	}
	for range 2 { // the second time it is gone
		must(t, h.Detach(t.Context(), orphan.Name, orphan.Index))
	}
	if _, err := net.InterfaceByIndex(orphan.Index); err == nil {
		t.Error("the interface is still there")
	}
	for port, want := range map[uint16]bool{8000: false, 8001: true} {
		guest, err := h.Table().Lookup(t.Context(), forward.TCP, port)
		if err != nil || guest.IsValid() != want {
			t.Errorf("host port %d leads to %v, %v; want it to lead anywhere: %v", port, guest, err, want)
		}
	}
}
