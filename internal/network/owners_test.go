package network

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"

	"github.com/smolvm/smolvm/internal/forward"
)

func netlinkRules() (*nftables.Conn, error) { return nftables.New() }

func commentOf(r *nftables.Rule) string {
	comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return comment
}

// ownerVariable makes TestOwnerProcess an owner with the runtime directory it names.
const ownerVariable = "SMOLVM_TEST_OWNER"

// TestOwnerProcess is what another owner does when startOwner runs it: it attaches a VM,
// forwards a port to it, says so, and waits for the end of its input.
func TestOwnerProcess(t *testing.T) {
	dir := os.Getenv(ownerVariable)
	if dir == "" {
		return
	}
	h := NewHost(Options{RuntimeDir: dir})
	defer h.Close()
	i, err := h.Attach(t.Context(), Attachment{VM: "theirs"})
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 9000, Guest: netip.AddrPortFrom(i.GuestAddr, 80)}
	if err := h.Table().Add(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("attached %s\n", i.Name)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		t.Fatal(err)
	}
}

// owner is another process that owns a VM.
type owner struct {
	cmd     *exec.Cmd
	input   io.Closer
	ifname  string
	stopped bool
}

func startOwner(t *testing.T, h *Host) *owner {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwnerProcess$", "-test.v")
	cmd.Env = append(os.Environ(), ownerVariable+"="+h.dir)
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &owner{cmd: cmd, input: input}
	t.Cleanup(o.kill)
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "attached "); ok {
			o.ifname = name
			return o
		}
	}
	t.Fatal("the other owner did not start")
	return nil
}

// kill ends the owner without a chance to clean up.
func (o *owner) kill() {
	if o.stopped {
		return
	}
	o.stopped = true
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
	o.input.Close()
}

// TestDeathOfAnotherOwner kills one of two owners. The other's forward works all the
// time, and what the dead one left goes without any command.
func TestDeathOfAnotherOwner(t *testing.T) {
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "ours"})
	go greet(guestOn(t, i).Listen("0.0.0.0:80"))
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(i.GuestAddr, 80)}
	if err := h.Table().Add(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	works := func() {
		t.Helper()
		var here net.Dialer
		if _, err := greeting(patience, here.DialContext, "127.0.0.1:8000"); err != nil {
			t.Fatal("our forward:", err)
		}
	}
	leadsSomewhere := func(port uint16) bool {
		guest, err := h.Table().Lookup(t.Context(), forward.TCP, port)
		if err != nil {
			t.Fatal(err)
		}
		return guest.IsValid()
	}
	works()
	other := startOwner(t, h)
	if !leadsSomewhere(9000) {
		t.Fatal("the other owner's forward is not there")
	}
	other.kill()
	works()
	wait(t, "the dead owner's forward is gone", func() bool {
		works()
		return !leadsSomewhere(9000)
	})
	works()
}

// TestOwnersDoNotFight has two processes mend the same damage, and then rest.
func TestOwnersDoNotFight(t *testing.T) {
	h := testHost(t)
	attach(t, h, Attachment{VM: "ours", Egress: true})
	startOwner(t, h)
	settle(t, h)
	want := needs(t)
	for range 5 {
		nft(t, "flush ruleset")
		wait(t, "the guards are back", func() bool { _, guarded := forwardsAndGuards(t); return guarded })
	}
	if !strings.Contains(want, "tcp . 9000 ") {
		t.Error("the other owner's forward was not there")
	}
	settle(t, h)
	wait(t, "all is back, and nobody writes any more", func() bool {
		before := generation(t)
		rest()
		return generation(t) == before && needs(t) == want
	})
}
