package main

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// connected returns both ends of a connection.
func connected(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "socket"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	if far, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return near, far
}

func joined(ctx context.Context, conn net.Conn) (in *io.PipeWriter, out *io.PipeReader, done chan error) {
	inReader, in := io.Pipe()
	out, outWriter := io.Pipe()
	done = make(chan error, 1)
	go func() { done <- joinStreams(ctx, conn, inReader, outWriter) }()
	return in, out, done
}

func TestStreamsEndOneByOne(t *testing.T) {
	near, far := connected(t)
	in, out, done := joined(context.Background(), near)
	go func() {
		_, _ = io.WriteString(in, "question")
		_ = in.Close()
	}()
	question, err := io.ReadAll(far)
	if err != nil || string(question) != "question" {
		t.Fatalf("%q, %v", question, err)
	}
	// The guest has seen the end of the input, and can still answer.
	go func() {
		_, _ = io.WriteString(far, "answer")
		_ = far.Close()
	}()
	answer, err := io.ReadAll(out)
	if err != nil || string(answer) != "answer" {
		t.Errorf("%q, %v", answer, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestGuestMayEndFirst(t *testing.T) {
	near, far := connected(t)
	in, out, done := joined(context.Background(), near)
	go func() {
		_, _ = io.WriteString(far, "answer")
		_ = far.CloseWrite()
	}()
	if answer, err := io.ReadAll(out); err != nil || string(answer) != "answer" {
		t.Fatalf("%q, %v", answer, err)
	}
	// Its end reached the output while the input goes on.
	go func() {
		_, _ = io.WriteString(in, "late")
		_ = in.Close()
	}()
	if late, err := io.ReadAll(far); err != nil || string(late) != "late" {
		t.Errorf("%q, %v", late, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestInputForNobodyIsNoFailure(t *testing.T) {
	near, far := connected(t)
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	in, out, done := joined(context.Background(), near)
	if _, err := io.ReadAll(out); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := io.WriteString(in, strings.Repeat("x", 1000)); err != nil {
				return
			}
		}
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	in.CloseWithError(errors.New("the test has ended"))
	out.Close()
}

func TestSignalEndsStreams(t *testing.T) {
	near, far := connected(t)
	ctx, cancel := context.WithCancel(context.Background())
	in, _, done := joined(ctx, near)
	defer in.Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := io.ReadAll(far); err != nil {
		t.Errorf("the guest's end: %v", err)
	}
}
