package qemu

import (
	"errors"
	"os"
	"os/exec"
	"testing"
)

// What another process started is watched and ended like a child.
func TestAdoptProcess(t *testing.T) {
	child, err := startProcess(exec.Command("cat", "/dev/zero"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer child.kill() //nolint:errcheck // it is killed before
	handle, err := openPID(child.id)
	if err != nil {
		t.Fatal(err)
	}
	if handle.ended() {
		t.Error("it ended by itself")
	}
	p := adoptProcess(child.id, handle)
	select {
	case <-p.done:
		t.Fatal("it is said to have ended:", p.err)
	default:
	}
	if err := p.kill(); err != nil {
		t.Error(err)
	}
	if err := p.kill(); err != nil {
		t.Error("the second time:", err)
	}
	if !errors.Is(p.err, errNoStatus) {
		t.Error("it is known how it ended:", p.err)
	}
	<-child.done
	if handle, err := openPID(child.id); err == nil {
		t.Error("a process that was reaped can be opened", handle.Close())
	} else if unlessGone(err) != nil {
		t.Error(err)
	}
	if err := unlessGone(os.ErrClosed); err == nil {
		t.Error("any error says that a process is gone")
	}
}
