package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/smolvm/smolvm"
)

// TestEgress lets a guest resolve a name and fetch a page from the neighbour.
func TestEgress(t *testing.T) {
	f := newFixture(t)
	serveNames(t)
	serveNeighbour(t)
	const fetch = `python3 -c 'import urllib.request; print(urllib.request.urlopen("http://neighbour.test:8080", timeout=20).read().decode())'`
	vm := f.launch()
	if got, want := run(t, vm, fetch), "you are "+hostAddress+"\n"; got != want {
		t.Errorf("the neighbour said %q, want %q", got, want)
	}
	lonely := f.launch(smolvm.Network(smolvm.NetworkNone))
	if res, err := lonely.Run(t.Context(), fetch); err != nil || res.ExitCode == 0 {
		t.Errorf("a VM without network fetched a page: %+v, %v", res, err)
	}
	serve(t, lonely, 8000, "lonely")
	port := expose(t, lonely, 8000, 0)
	wantPage(t, port, "lonely")
}

// serveNeighbour lets the neighbour serve a page on port 8080 that tells who asked.
func serveNeighbour(t *testing.T) {
	t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "you are %s", host)
	})}
	t.Cleanup(func() { server.Close() })
	go server.Serve(listenAtNeighbour(t, "8080"))
}

// TestPackages updates the package lists and installs a package in the guest. The
// neighbour passes the package manager's requests on to the machine's own network.
func TestPackages(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	sources := run(t, vm, "cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null; true")
	if err := mirrorReachable(sources); err != nil {
		t.Skip("no package mirror can be reached from here: ", err)
	}
	proxy := &http.Server{Handler: proxyHandler()}
	t.Cleanup(func() { proxy.Close() })
	go proxy.Serve(listenAtNeighbour(t, "3128"))
	run(t, vm, fmt.Sprintf(`printf 'Acquire::http::Proxy "%[1]s";\nAcquire::https::Proxy "%[1]s";\n' >/etc/apt/apt.conf.d/99proxy`,
		"http://"+net.JoinHostPort(neighbourAddress, "3128")))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	res, err := vm.Run(ctx, "apt-get -q update && apt-get -q install -y --no-install-recommends hello && hello")
	if err != nil || res.ExitCode != 0 || !strings.Contains(res.Stdout, "Hello, world!") {
		t.Errorf("install a package: %v\n%+v", err, res)
	}
}

// listenAtNeighbour listens on a port of the neighbour.
func listenAtNeighbour(t *testing.T, port string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := world.Neighbour.Try(func() (err error) {
		l, err = net.Listen("tcp4", net.JoinHostPort(neighbourAddress, port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serveNames answers every question for an address with the neighbour's own.
func serveNames(t *testing.T) {
	t.Helper()
	var conn net.PacketConn
	if err := world.Neighbour.Try(func() (err error) {
		conn, err = net.ListenPacket("udp4", neighbourAddress+":53")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			for _, q := range m.Questions {
				if q.Type == dnsmessage.TypeA {
					body := &dnsmessage.AResource{A: [4]byte(net.ParseIP(neighbourAddress).To4())}
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: body,
					})
				}
			}
			if reply, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
}

// dialOutside connects to an address on the machine's own network.
func dialOutside(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if len(world.Nameservers) == 0 {
			return nil, errors.New("the machine has no name server")
		}
		return world.Outside.Dial(ctx, network, net.JoinHostPort(world.Nameservers[0], "53"))
	}}
	addrs, err := resolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return nil, err
	}
	return world.Outside.Dial(ctx, network, net.JoinHostPort(addrs[0].String(), port))
}

// mirrorReachable tries the first package source that it finds.
func mirrorReachable(sources string) error {
	for field := range strings.FieldsSeq(sources) {
		u, err := url.Parse(field)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			continue
		}
		port := u.Port()
		if port == "" {
			port = u.Scheme // the service's name
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		numeric, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
		if err != nil {
			return err
		}
		conn, err := dialOutside(ctx, "tcp4", fmt.Sprintf("%s:%d", u.Hostname(), numeric))
		if err != nil {
			return err
		}
		return conn.Close()
	}
	return errors.New("the guest has no package source")
}

// proxyHandler is an HTTP proxy to the machine's own network.
func proxyHandler() http.Handler {
	transport := &http.Transport{DialContext: dialOutside}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			proxyTunnel(w, r)
			return
		}
		r.RequestURI = ""
		resp, err := transport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
}

func proxyTunnel(w http.ResponseWriter, r *http.Request) {
	out, err := dialOutside(r.Context(), "tcp4", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer out.Close()
	w.WriteHeader(http.StatusOK)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	go func() { _, _ = io.Copy(out, conn) }()
	_, _ = io.Copy(conn, out)
}
