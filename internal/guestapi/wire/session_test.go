package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// pair makes both ends of a session.
func pair(t *testing.T) (host, guest *Session) {
	t.Helper()
	a, b := socketPair(t)
	host, guest = NewHost(NewConn(a)), NewGuest(NewConn(b))
	t.Cleanup(func() {
		host.Close()
		_ = host.Wait()
		_ = guest.Wait()
	})
	return host, guest
}

// openChannel opens a channel. The requests of both ends are taken and forgotten.
func openChannel(t *testing.T, host, guest *Session) (ours, theirs ssh.Channel) {
	t.Helper()
	accepted := make(chan ssh.Channel, 1)
	go func() {
		channel, requests, err := (<-guest.Opens()).Accept()
		if err == nil {
			go ssh.DiscardRequests(requests)
		}
		accepted <- channel
	}()
	ours, requests, err := host.OpenChannel("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	return ours, <-accepted
}

func TestSessionOpen(t *testing.T) {
	host, guest := pair(t)
	go func() {
		for open := range guest.Opens() {
			if open.ChannelType() == "bad" {
				_ = open.Reject(ssh.Prohibited, "no "+string(open.ExtraData()))
				continue
			}
			channel, requests, _ := open.Accept()
			go func() {
				for req := range requests {
					_, _ = channel.SendRequest(req.Type+" back", false, req.Payload)
				}
				channel.Close()
			}()
		}
	}()
	var refused *ssh.OpenChannelError
	if _, _, err := host.OpenChannel("bad", []byte("luck")); !errors.As(err, &refused) || refused.Message != "no luck" {
		t.Errorf("got %v", err)
	}
	channel, requests, err := host.OpenChannel("good", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := channel.SendRequest("there", false, []byte("data")); err != nil {
		t.Fatal(err)
	}
	if req := <-requests; req.Type != "there back" || string(req.Payload) != "data" || req.Reply(true, nil) != nil {
		t.Errorf("got %+v", req)
	}
	if _, err := channel.SendRequest("x", true, nil); !errors.Is(err, errReply) {
		t.Errorf("a request that wants a reply: %v", err)
	}
	channel.Close()
	for req := range requests {
		t.Errorf("more: %+v", req)
	}
	for name, err := range map[string]error{
		"Close": channel.Close(), "CloseWrite": channel.CloseWrite(),
		"Write":       func() error { _, err := channel.Write([]byte("x")); return err }(),
		"SendRequest": func() error { _, err := channel.SendRequest("x", false, nil); return err }(),
	} {
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s on a closed channel: %v", name, err)
		}
	}
}

func TestSessionRequests(t *testing.T) {
	host, guest := pair(t)
	go func() {
		for req := range guest.Requests() {
			_ = req.Reply(req.Type == "good", append([]byte("re "), req.Payload...))
		}
	}()
	if ok, reply, err := host.SendRequest("good", true, []byte("x")); !ok || string(reply) != "re x" || err != nil {
		t.Errorf("granted: %v, %q, %v", ok, reply, err)
	}
	if ok, reply, err := host.SendRequest("bad", true, nil); ok || string(reply) != "re " || err != nil {
		t.Errorf("refused: %v, %q, %v", ok, reply, err)
	}
	if _, _, err := guest.SendRequest("note", false, []byte("y")); err != nil {
		t.Fatal(err)
	}
	if req := <-host.Requests(); req.Type != "note" || req.WantReply || string(req.Payload) != "y" {
		t.Errorf("got %+v", req)
	}
	if _, _, err := host.SendRequest("good", true, make([]byte, maxMessage)); !errors.Is(err, errMessage) {
		t.Errorf("a long one: %v", err)
	}
	if ok, _, err := host.SendRequest("good", true, nil); !ok || err != nil {
		t.Errorf("after a long one: %v, %v", ok, err)
	}
}

// What is sent both ways and on both streams arrives, whole and in order.
func TestChannelCarries(t *testing.T) {
	host, guest := pair(t)
	ours, theirs := openChannel(t, host, guest)
	data := bytes.Repeat([]byte("0123456789abcde"), windowSize/5)
	var sending, receiving sync.WaitGroup
	for _, way := range []struct {
		from io.Writer
		to   io.Reader
	}{{ours, theirs}, {theirs, ours}, {theirs.Stderr(), ours.Stderr()}} {
		sending.Go(func() {
			if n, err := way.from.Write(data); n != len(data) || err != nil {
				t.Errorf("wrote %d bytes: %v", n, err)
			}
		})
		receiving.Go(func() {
			got, err := io.ReadAll(way.to)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d bytes of %d: %v", len(got), len(data), err)
			}
		})
	}
	sending.Wait()
	for _, c := range []ssh.Channel{ours, theirs} {
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
	}
	receiving.Wait()
	if _, err := ours.Write([]byte("x")); !errors.Is(err, io.EOF) {
		t.Errorf("wrote after the end: %v", err)
	}
}

// Who is not read from waits, and the other channels do not wait with it. A close ends that.
func TestChannelWindow(t *testing.T) {
	host, guest := pair(t)
	_, theirs := openChannel(t, host, guest)
	idle, busy := openChannel(t, host, guest)
	written := make(chan int, 1)
	go func() {
		n, err := theirs.Write(make([]byte, windowSize+1))
		if !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
		written <- n
	}()
	if _, err := busy.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(idle, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for full := false; !full; runtime.Gosched() {
		c := theirs.(*channel)
		c.mu.Lock()
		full = c.window == 0
		c.mu.Unlock()
	}
	host.Close()
	if n := <-written; n != windowSize {
		t.Errorf("%d bytes were written to nobody", n)
	}
}

// The end of a session ends all that waits for it, and all that is begun later.
func TestSessionEnds(t *testing.T) {
	a, b := socketPair(t)
	host, guest := NewHost(NewConn(a)), NewGuest(NewConn(b))
	ours, _ := openChannel(t, host, guest)
	ended := make(chan error, 3)
	go func() { _, err := ours.Read(make([]byte, 1)); ended <- err }()
	go func() { _, _, err := host.SendRequest("x", true, nil); ended <- err }()
	go func() { _, _, err := host.OpenChannel("x", nil); ended <- err }()
	<-guest.Requests()
	<-guest.Opens()
	guest.Close()
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
	}
	if err := host.Wait(); !errors.Is(err, io.EOF) {
		t.Errorf("Wait: %v", err)
	}
	if _, _, err := host.SendRequest("x", true, nil); err == nil {
		t.Error("a request was answered")
	}
	if _, _, err := host.OpenChannel("x", nil); err == nil {
		t.Error("a channel was opened")
	}
	for range host.Requests() {
	}
}

// A guest that does not keep to the protocol ends its session and does no other harm.
func TestSessionBreaks(t *testing.T) {
	for name, messages := range map[string][]message{
		"opens a channel":       {{kind: kindOpen, channel: 5, name: "x"}},
		"unknown channel":       {{kind: kindData, channel: 5}},
		"answer to no question": {{kind: kindDone}},
		"unknown kind":          {{kind: 99, channel: 1}},
		"too much data":         repeat(windowSize/pieceSize+1, message{kind: kindData, channel: 1, payload: make([]byte, pieceSize)}),
		"data after the end":    {{kind: kindEnd, channel: 1}, {kind: kindErrData, channel: 1, payload: []byte("x")}},
		"endless window":        {{kind: kindWindow, channel: 1, payload: []byte{0xff, 0xff, 0xff, 0xff}}},
		"short window":          {{kind: kindWindow, channel: 1, payload: []byte{1}}},
		"closes twice":          {{kind: kindClose, channel: 1}, {kind: kindClose, channel: 1}},
		"decides again":         {{kind: kindReject, channel: 1}, {kind: kindAccept, channel: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := socketPair(t)
			host := NewHost(NewConn(a))
			go func() {
				_, _ = readMessage(b, makeRoom) // which opens the channel
				write(t, b, message{kind: kindAccept, channel: 1})
				_, _ = io.Copy(io.Discard, b)
			}()
			channel, requests, err := host.OpenChannel("x", nil)
			if err != nil {
				t.Fatal(err)
			}
			go ssh.DiscardRequests(requests)
			for _, m := range messages {
				write(t, b, m)
			}
			if err := host.Wait(); !errors.Is(err, errMessage) {
				t.Errorf("got %v", err)
			}
			if _, err := io.Copy(io.Discard, channel); err != nil {
				t.Errorf("read: %v", err)
			}
		})
	}
}

func repeat(n int, m message) (all []message) {
	for range n {
		all = append(all, m)
	}
	return all
}

func write(t *testing.T, to io.Writer, m message) {
	t.Helper()
	head, err := m.head()
	if err != nil {
		t.Error(err)
	}
	_, _ = to.Write(append(head, m.payload...)) // whoever has heard enough is gone
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 8, 4, 0, 0, 0, 7, 1, 'n', 'p'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 4, 0, 0, 0, 7, 1})
	f.Add([]byte{0, 0, 0, 6, 4, 0, 0, 0, 7, 1})
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		for {
			from := len(stream) - r.Len()
			m, err := readMessage(r, makeRoom)
			if err != nil {
				return
			}
			head, err := m.head()
			if err != nil {
				t.Fatal(err)
			}
			if got := append(head, m.payload...); !bytes.Equal(got, stream[from:len(stream)-r.Len()]) {
				t.Fatalf("%x was read as %x", stream[from:], got)
			}
		}
	})
}

// Whatever a guest says, the session ends when the guest does, and all that waits with it.
func FuzzSession(f *testing.F) {
	for _, kind := range []kind{kindAccept, kindReject, kindData, kindWindow, kindEnd, kindClose, kindTell, kindNotify, kindDone} {
		head, _ := message{kind: kind, channel: 1, name: "n", payload: []byte{0, 0, 1, 0}}.head()
		accept, _ := message{kind: kindAccept, channel: 1}.head()
		f.Add(append(accept, append(head, 0, 0, 1, 0)...))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		a, b := net.Pipe()
		host := NewHost(NewConn(a))
		go func() { _, _ = io.Copy(io.Discard, b) }()
		go func() {
			for req := range host.Requests() {
				_ = req.Reply(true, nil)
			}
		}()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			_, _, _ = host.SendRequest("x", true, nil)
		}()
		opened := make(chan struct{})
		go func() {
			defer close(opened)
			channel, requests, err := host.OpenChannel("x", nil)
			if err != nil {
				return
			}
			go ssh.DiscardRequests(requests)
			_, _ = io.Copy(io.Discard, channel)
			_, _ = channel.Write([]byte("x"))
		}()
		_ = b.SetDeadline(time.Now().Add(time.Minute))
		_, _ = b.Write(stream)
		b.Close()
		_ = host.Wait()
		<-asked
		<-opened
	})
}

// makeRoom allocates for readMessage.
func makeRoom(size int) []byte { return make([]byte, size) }
