package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/testworld"
)

// The services of a VM, besides portByte.
const (
	portSink   = 8 // TCP: says how many bytes it was sent
	portSource = 9 // TCP: sends zeros
)

// vmServices are the services of a VM, with what its image has.
const vmServices = `cat >/root/services.py <<'EOF'
import socket, threading
def serve(port, talk):
    listener = socket.create_server(("0.0.0.0", port), backlog=128)
    def loop():
        while True:
            conn = listener.accept()[0]
            try:
                with conn: talk(conn)
            except OSError: pass
    threading.Thread(target=loop).start()
def greet(conn):
    conn.sendall(b"!")
    conn.recv(1)
def sink(conn):
    buffer, total = bytearray(1 << 20), 0
    while n := conn.recv_into(buffer): total += n
    conn.sendall(total.to_bytes(8, "big"))
def source(conn):
    zeros = bytes(1 << 20)
    while True: conn.sendall(zeros)
serve(7, greet)
serve(8, sink)
serve(9, source)
` + "EOF\npython3 /root/services.py &"

// measureForwardingToVM holds SmolVM's forwards against ssh -L in front of a VM.
func measureForwardingToVM(ctx context.Context, set settings) (_ string, err error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(testworld.Scratch, "forward-vm")
	vm, err := smolvm.Launch(ctx, smolvm.DataDir(dir))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	info, err := vm.Info(ctx)
	if err != nil {
		return "", err
	}
	if _, err := vm.Run(ctx, vmServices); err != nil {
		return "", err
	}
	w := &world{guest: vm.IP(), host: newPlace(nil), tools: tools{set.peers}}
	w.add(w.host.close)
	defer func() { err = errors.Join(err, w.Close()) }()
	if w.client, err = startClient(w.host); err != nil {
		return "", err
	}
	w.add(w.client.stop)
	routes, err := w.vmRoutes(ctx, vm, filepath.Join(dir, "ssh", "id_ed25519"))
	if err != nil {
		return "", err
	}
	rates := map[string]samples[float64]{toGuest: {}, fromGuest: {}}
	if err := interleave("throughput to a VM", set.rounds, routes, func(r route) error {
		sent, err := push(r, set.length)
		if err != nil {
			return err
		}
		received, err := pull(r, set.length)
		rates[toGuest].add(r.name, sent)
		rates[fromGuest].add(r.name, received)
		return err
	}); err != nil {
		return "", err
	}
	times, err := w.connects("connect to a VM", set.rounds*latencyBlocks/4, routes, task{})
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Forwarding to a VM\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`) on %s, accelerator %s. ", partForwardVM, on, info.VMM.Accelerator)
	fmt.Fprintf(&b, "The services are Python's, and the server of `ssh -L` is the guest's own. All routes in turn, %d rounds, every second one backwards; medians.\n\n", set.rounds)
	pairs := []versus{{ours: byNFTables, peer: direct}, {ours: byTunnel, peer: bySSH}}
	throughputTable(&b, rates, routes, mbits, pairs)
	latencyTable(&b, times, routes, pairs)
	return b.String(), nil
}

// vmRoutes opens the routes to a VM. key is its user's.
func (w *world) vmRoutes(ctx context.Context, vm *smolvm.VM, key string) ([]route, error) {
	loopback := netip.MustParseAddr(ipv4Loopback)
	kernel, tunnelled, ssh := forwarded(byNFTables, 1, loopback), forwarded(byTunnel, 3, loopback), forwarded(bySSH, 4, loopback)
	proxied := kernel // the other address of the same forwards
	proxied.name, proxied.host = byProxy, netip.IPv6Loopback()
	args := sshArgs(key, w.guest)
	for _, port := range []int{portByte, portSink, portSource} {
		if err := vm.WaitPort(ctx, port); err != nil {
			return nil, err
		}
		for base, kind := range map[int]smolvm.TransportKind{kernel.base: smolvm.NFTables, tunnelled.base: smolvm.SSHTunnel} {
			if _, err := vm.ExposeLocal(ctx, port, smolvm.HostPort(base+port), smolvm.Strict(), smolvm.Transport(kind)); err != nil {
				return nil, err
			}
		}
		args = append(args, "-L", fmt.Sprintf("%s:%d:%s:%d", ipv4Loopback, ssh.base+port, ipv4Loopback, port))
	}
	if err := w.run(w.host, "usr/bin/ssh", args...); err != nil {
		return nil, err
	}
	routes := []route{{name: direct, host: w.guest}, kernel, proxied, tunnelled, ssh}
	return routes, w.host.awaitListener(ssh.base + portSource)
}

// chunk is what is written or read at once.
const chunk = 1 << 20

// push sends for a while and returns the bits a second that have arrived.
func push(r route, length time.Duration) (float64, error) {
	conn, err := net.Dial("tcp", r.to(portSink).String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	zeros := make([]byte, chunk)
	start := time.Now()
	for time.Since(start) < length {
		if _, err := conn.Write(zeros); err != nil {
			return 0, err
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	var total uint64
	if err := binary.Read(conn, binary.BigEndian, &total); err != nil {
		return 0, fmt.Errorf("hear how much arrived: %w", err)
	}
	return 8 * float64(total) / time.Since(start).Seconds(), nil
}

// pull receives for a while and returns the bits a second.
func pull(r route, length time.Duration) (float64, error) {
	conn, err := net.Dial("tcp", r.to(portSource).String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	start := time.Now()
	if err := conn.SetReadDeadline(start.Add(length)); err != nil {
		return 0, err
	}
	total, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, chunk))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		return 0, errors.Join(errors.New("the source ended"), err)
	}
	return 8 * float64(total) / time.Since(start).Seconds(), nil
}
