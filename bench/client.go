package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// replyPatience is how long a client waits for one answer, in seconds.
const replyPatience = 10

// task is what a client is told to do.
type task struct {
	Address netip.AddrPort
	UDP     bool
	GoNet   bool          // by Go's net package, as programs do; else by system calls alone
	Count   int           // connections to make one after the other, or datagrams to have echoed
	Limit   time.Duration // after which no more connections are begun; 0: never
	Window  int           // datagrams on their way at once
}

// outcome is what a client found.
type outcome struct {
	Times []time.Duration // from connect to first byte, or from datagram to echo if there was one at a time
	Took  time.Duration   // all of it
	Err   string
}

// client is a process that connects. It is one of its own, or it would share the
// scheduler with those of the forwards that this program carries.
type client struct {
	*program
	tasks    *json.Encoder
	outcomes *json.Decoder
	close    func() error
}

func startClient(at *place) (*client, error) {
	cmd := asRole(roleClient)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	p, err := at.start(cmd)
	if err != nil {
		return nil, err
	}
	return &client{program: p, tasks: json.NewEncoder(in), outcomes: json.NewDecoder(out), close: in.Close}, nil
}

// do has the client do a task.
func (c *client) do(t task) (outcome, error) {
	var o outcome
	if err := c.tasks.Encode(t); err != nil {
		return o, fmt.Errorf("tell client: %w", err)
	}
	if err := c.outcomes.Decode(&o); err != nil {
		return o, fmt.Errorf("hear from client: %w", err)
	}
	if o.Err != "" {
		return o, fmt.Errorf("connect to %s: %s", t.Address, o.Err)
	}
	return o, nil
}

// serveClient is the client's process. It ends with its input.
func serveClient(in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	tasks, outcomes := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var t task
		switch err := tasks.Decode(&t); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		runtime.GC() // now, and not between two connections
		o := outcome{Times: make([]time.Duration, 0, t.Count)}
		start := time.Now()
		var err error
		switch {
		case t.UDP:
			err = t.echo(&o)
		case t.GoNet:
			err = t.connect(&o, t.askByGo)
		default:
			err = t.connect(&o, t.ask)
		}
		o.Took = time.Since(start)
		if err != nil {
			o.Err = err.Error()
		}
		if err := outcomes.Encode(o); err != nil {
			return err
		}
	}
}

// connect makes connections and notes how long each took to the first byte.
func (t task) connect(o *outcome, ask func() (time.Duration, error)) error {
	for began := time.Now(); len(o.Times) < t.Count; {
		if t.Limit > 0 && time.Since(began) > t.Limit {
			return nil
		}
		took, err := ask()
		if err != nil {
			return err
		}
		o.Times = append(o.Times, took)
	}
	return nil
}

// ask makes one connection. Its end is a reset, so that nothing of it lingers.
func (t task) ask() (time.Duration, error) {
	start := time.Now()
	fd, err := t.dial(unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	n, err := read(fd, make([]byte, 1))
	took := time.Since(start)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	err = errors.Join(err, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	return took, errors.Join(err, unix.Close(fd))
}

// askByGo is ask with what programs in Go use.
func (t task) askByGo() (time.Duration, error) {
	start := time.Now()
	conn, err := net.Dial("tcp", t.Address.String())
	if err != nil {
		return 0, err
	}
	_, err = conn.Read(make([]byte, 1))
	took := time.Since(start)
	return took, errors.Join(err, conn.(*net.TCPConn).SetLinger(0), conn.Close())
}

// echo has datagrams echoed, Window of them at once.
func (t task) echo(o *outcome) (err error) {
	fd, err := t.dial(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	datagram := make([]byte, 64)
	for range t.Window - 1 {
		if _, err := unix.Write(fd, datagram); err != nil {
			return fmt.Errorf("send datagram: %w", err)
		}
	}
	for range t.Count {
		start := time.Now()
		if _, err := unix.Write(fd, datagram); err != nil {
			return fmt.Errorf("send datagram: %w", err)
		}
		if _, err := read(fd, datagram); err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		if t.Window == 1 {
			o.Times = append(o.Times, time.Since(start))
		}
	}
	return nil
}

// read reads on when a signal of Go's runtime came between: a read with a timeout is
// not restarted by the kernel.
func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// dial makes a connected socket that blocks, for replyPatience at most.
func (t task) dial(kind int) (int, error) {
	family := unix.AF_INET
	var to unix.Sockaddr
	if addr := t.Address.Addr(); addr.Is4() {
		to = &unix.SockaddrInet4{Port: int(t.Address.Port()), Addr: addr.As4()}
	} else {
		family = unix.AF_INET6
		to = &unix.SockaddrInet6{Port: int(t.Address.Port()), Addr: addr.As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	timeout := unix.Timeval{Sec: replyPatience}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("connect: %w", err), unix.Close(fd))
	}
	return fd, nil
}
