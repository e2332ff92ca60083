package forward_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// serveHTTP runs a real HTTP server in the guest, and returns where it is exposed.
func (p path) serveHTTP(t *testing.T, handler http.Handler) (address string) {
	t.Helper()
	l, address := p.listen(t)
	server := &http.Server{Handler: handler}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return address
}

func testWebSocket(t *testing.T, p path) {
	address := p.serveHTTP(t, websocket.Handler(func(ws *websocket.Conn) {
		var message []byte
		for websocket.Message.Receive(ws, &message) == nil {
			if err := websocket.Message.Send(ws, message); err != nil {
				return
			}
		}
	}))
	ws, err := websocket.Dial("ws://"+address+"/", "", "http://localhost/")
	must(t, err)
	defer ws.Close()
	ws.SetDeadline(time.Now().Add(patience))
	for _, size := range []int{1, 1000, 100_000} {
		message := random(size)
		must(t, websocket.Message.Send(ws, message))
		var got []byte
		if err := websocket.Message.Receive(ws, &got); err != nil || !bytes.Equal(got, message) {
			t.Errorf("of a message of %d bytes came %d, %v", size, len(got), err)
		}
	}
}

// Each event arrives before the next is made.
func testServerSentEvents(t *testing.T, p path) {
	arrived := make(chan struct{})
	address := p.serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 100 {
			fmt.Fprintf(w, "data: event %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
			select {
			case <-arrived:
			case <-r.Context().Done():
				return
			}
		}
	}))
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: patience}).DialContext}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience}
	answer, err := client.Get("http://" + address)
	must(t, err)
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for i := range 100 {
		for _, want := range []string{fmt.Sprintf("data: event %d", i), ""} {
			if !lines.Scan() || lines.Text() != want {
				t.Fatalf("got %q, %v; want %q", lines.Text(), lines.Err(), want)
			}
		}
		arrived <- struct{}{}
	}
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the last event: %q, %v", lines.Text(), lines.Err())
	}
}
