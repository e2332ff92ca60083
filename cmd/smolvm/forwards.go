package main

import (
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/smolvm/smolvm"
)

// vmForward is a forward in the output for programs. Its field names are a contract.
type vmForward struct {
	VM string `json:"vm"`
	smolvm.Forward
}

// withVM says of which VM forwards are.
func withVM(vm string, forwards []smolvm.Forward) []vmForward {
	list := make([]vmForward, len(forwards))
	for i, f := range forwards {
		list[i] = vmForward{vm, f}
	}
	return list
}

// runs tells whether a VM can have forwards.
func runs(vm smolvm.Info) bool {
	return vm.Err == nil && (vm.Status == smolvm.StatusRunning || vm.Status == smolvm.StatusPaused)
}

// localAddress is where a host port answers, beside ::1.
func localAddress(p smolvm.Pair) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.HostPort))
}

func describePair(p smolvm.Pair) string {
	return localAddress(p) + " -> " + guestPort(smolvm.Forward{Pair: p})
}

func describeForward(f smolvm.Forward) string {
	return fmt.Sprintf("%s  transport=%s", describePair(f.Pair), f.Transport)
}

// printForwards prints forwards as a table.
func printForwards(out io.Writer, forwards []vmForward) error {
	t := newTable(out, "VM", "LOCAL", "GUEST", "PROTO", "TRANSPORT", "HEALTH", "OPEN", "TOTAL", "TO GUEST", "FROM GUEST", "REASON")
	for _, f := range forwards {
		t.row(f.VM, localAddress(f.Pair), strconv.Itoa(f.GuestPort), string(f.Protocol), string(f.Transport), string(f.Health),
			strconv.Itoa(f.Open), strconv.FormatInt(f.Total, 10), size(f.ToGuest), size(f.FromGuest), f.Reason)
	}
	return t.flush()
}
