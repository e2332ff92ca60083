package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"

	"golang.org/x/sys/unix"
)

// The guest's services. Each is there once for every route: see route.guestPort.
const (
	portByte  = 7  // TCP: says one byte to whom connects. UDP: echoes
	portSSH   = 22 // the peer's server
	portHTTP  = 80 // a page
	portIPerf = 90 // iperf3
)

// serveAll is the guest's services. It says when it is ready, and ends by being
// killed.
func serveAll() error {
	var greeters, echoes []unix.PollFd
	ended := make(chan error)
	for slot := range slots {
		r := route{slot: slot}
		greeter, err := socket(unix.SOCK_STREAM, r.guestPort(portByte))
		if err != nil {
			return err
		}
		if err := unix.Listen(greeter, 1024); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		echo, err := socket(unix.SOCK_DGRAM, r.guestPort(portByte))
		if err != nil {
			return err
		}
		web, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", r.guestPort(portHTTP)))
		if err != nil {
			return err
		}
		greeters = append(greeters, unix.PollFd{Fd: int32(greeter), Events: unix.POLLIN})
		echoes = append(echoes, unix.PollFd{Fd: int32(echo), Events: unix.POLLIN})
		go func() { ended <- http.Serve(web, http.HandlerFunc(servePage)) }()
	}
	go func() { ended <- greet(greeters) }()
	go func() { ended <- echoDatagrams(echoes) }()
	fmt.Println("ready")
	return <-ended
}

// socket makes a socket that is bound to a port of all addresses. The services that
// latency is measured with block in system calls: Go's poller would add its own
// time to all that is compared.
func socket(kind, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port}); err != nil {
		return -1, fmt.Errorf("bind port %d: %w", port, err)
	}
	return fd, nil
}

// serveReady calls serve for each socket that something has come to. There is one thread
// for the sockets of all routes: which processor a thread sleeps on would make more
// of a difference than the routes do.
func serveReady(sockets []unix.PollFd, serve func(fd int) error) error {
	runtime.LockOSThread()
	for {
		if _, err := unix.Poll(sockets, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for clients: %w", err)
		}
		for _, s := range sockets {
			if s.Revents == 0 {
				continue
			}
			err := serve(int(s.Fd))
			switch {
			case err == nil, errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNREFUSED):
			default:
				return err
			}
		}
	}
}

// greet says a byte to each client. A client resets its connection once it has read,
// so that nothing lingers; until then the connection stays open.
func greet(listeners []unix.PollFd) error {
	var open [1024]int
	n := 0
	return serveReady(listeners, func(listener int) error {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if old := open[n%len(open)]; old != 0 {
			unix.Close(old)
		}
		open[n%len(open)] = fd
		n++
		// It fails if the client has gone, which is the client's to tell.
		_, _ = unix.SendmsgN(fd, []byte{'!'}, nil, nil, unix.MSG_NOSIGNAL)
		return nil
	})
}

func echoDatagrams(sockets []unix.PollFd) error {
	datagram := make([]byte, 64<<10)
	return serveReady(sockets, func(fd int) error {
		n, from, err := unix.Recvfrom(fd, datagram, 0)
		if err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		_ = unix.Sendto(fd, datagram[:n], 0, from) // a client may have gone
		return nil
	})
}

func servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte("hello\n")) // a client may have gone
}
