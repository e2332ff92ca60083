package network

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// flood makes more events than a socket's buffer has room for.
func flood(t *testing.T) {
	t.Helper()
	var numbers []string
	for n := range 10000 {
		numbers = append(numbers, strconv.Itoa(n+1))
	}
	nft(t, "add table ip flood; add set ip flood s { type inet_service; }; add element ip flood s { "+strings.Join(numbers, ",")+" }; delete table ip flood")
}

func TestEventSocket(t *testing.T) {
	s, err := listenEvents(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.remaining(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("before anything happened: %v", err)
	}
	nft(t, "add table inet x; delete table inet x")
	datagram, err := s.receive()
	if err != nil {
		t.Fatal(err)
	}
	var events event
	for m := range messages(datagram) {
		events |= someInterests().ofRules(m)
	}
	if events != ruleEvent {
		t.Errorf("got events %b", events)
	}
	flood(t)
	for err = nil; err == nil; {
		_, err = s.receive()
	}
	if !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("after a flood: %v", err)
	}
	s.interrupt()
	if _, err := s.receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestLostEvents has the kernel leave out the event of what must be mended.
func TestLostEvents(t *testing.T) {
	h := testHost(t)
	attach(t, h, Attachment{VM: "a"})
	settle(t, h)
	want := needs(t)
	h.reconciler.mu.Lock() // it cannot take events now
	flood(t)
	nft(t, "flush ruleset")
	h.reconciler.mu.Unlock()
	wait(t, "all is mended", func() bool { return needs(t) == want })
}
