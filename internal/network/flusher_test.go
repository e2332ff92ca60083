package network

import (
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
)

// What is about to be forgotten keeps the same mapping from being added, and no other.
func TestFlusherWait(t *testing.T) {
	a, b := forward.Mapping{Protocol: forward.TCP, HostPort: 1}, forward.Mapping{Protocol: forward.TCP, HostPort: 2}
	var f flusher
	begun, finish := make(chan []forward.Mapping), make(chan bool)
	flush := func(mappings []forward.Mapping) {
		begun <- mappings
		<-finish
	}
	f.add([]forward.Mapping{a}, flush)
	if got := <-begun; len(got) != 1 || got[0] != a {
		t.Errorf("flushing %v", got)
	}
	f.add([]forward.Mapping{b}, flush) // waits its turn
	f.wait([]forward.Mapping{{Protocol: forward.UDP, HostPort: 1}})
	waited := make(chan string, 2)
	go func() {
		f.wait([]forward.Mapping{a})
		waited <- "a"
		f.wait([]forward.Mapping{b})
		waited <- "b"
	}()
	select {
	case who := <-waited:
		t.Fatalf("did not wait for %s", who)
	default:
	}
	finish <- true
	if got := <-begun; len(got) != 1 || got[0] != b {
		t.Errorf("flushing %v", got)
	}
	if who := <-waited; who != "a" {
		t.Errorf("%s waited first", who)
	}
	finish <- true
	if who := <-waited; who != "b" {
		t.Errorf("%s waited second", who)
	}
	f.done.Wait()
	f.wait([]forward.Mapping{a, b})
}
