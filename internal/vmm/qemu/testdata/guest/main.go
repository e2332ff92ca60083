// Command guest is the first program of the guests in this package's tests. It
// obeys commands, one a line, from the guest channel.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("test guest:", err)
	}
	// Its end would be a kernel panic: let the test see the message instead.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	seconds, _, _ := strings.Cut(string(uptime), " ")
	fmt.Println("smolvm-guest: user space")
	commandLine, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if strings.Contains(string(commandLine), "smolvm.probe") {
		return nil
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	return serve(port, map[string]func([]string) (string, error){
		"uptime":  func([]string) (string, error) { return seconds, nil },
		"cmdline": func([]string) (string, error) { return strings.TrimSpace(string(commandLine)), nil },
	})
}

func loadModules() error {
	list, err := os.ReadFile("/modules.list")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", path, err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// openPort waits for the guest channel.
func openPort() (*os.File, error) {
	for range 1000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, path := range names {
			name, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(name)) == guestapi.ChannelName {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR, 0)
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil, errors.New("no guest channel")
}

func serve(port *os.File, commands map[string]func([]string) (string, error)) error {
	memory := &memory{}
	for name, f := range map[string]func([]string) (string, error){
		"ping": func([]string) (string, error) { return "pong", nil },
		"poweroff": func([]string) (string, error) {
			unix.Sync()
			return "", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		},
		"reboot": func([]string) (string, error) { return "", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) },
		"panic":  func([]string) (string, error) { return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) },
		"disk":   disk,
		"shout":  shout,
		"net":    configure,
		"dial":   dial,
		"churn":  memory.churn,
		"whole":  memory.whole,
		"time":   func([]string) (string, error) { return fmt.Sprint(time.Now().UnixNano()), nil },
	} {
		commands[name] = f
	}
	for {
		lines := bufio.NewScanner(port)
		for lines.Scan() {
			words := strings.Fields(lines.Text())
			if len(words) == 0 {
				continue
			}
			answer, err := "", fmt.Errorf("no command %q", words[0])
			if f, ok := commands[words[0]]; ok {
				answer, err = f(words[1:])
			}
			if err != nil {
				answer = "error: " + err.Error()
			}
			if _, err := fmt.Fprintln(port, strings.ReplaceAll(answer, "\n", " ")); err != nil {
				return err
			}
		}
		// While nobody is connected, reading ends at once.
		time.Sleep(10 * time.Millisecond)
	}
}

// memory is pages that are written one after the other, again and again, each time with the next
// number. So at every moment those up to some page have a number, and the others the one before.
type memory struct {
	mu    sync.Mutex
	pages [8 << 10][4096 / 8]uint64
	next  int
	round uint64
}

// churn begins to write, and never ends.
func (m *memory) churn([]string) (string, error) {
	go func() {
		for {
			m.mu.Lock()
			for range 64 {
				if m.next == 0 {
					m.round++
				}
				for i := range m.pages[m.next] {
					m.pages[m.next][i] = m.round
				}
				m.next = (m.next + 1) % len(m.pages)
			}
			m.mu.Unlock()
		}
	}()
	return "begun", nil
}

// whole tells whether the pages are what they must be.
func (m *memory) whole([]string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.pages {
		want := m.round
		if m.next != 0 && p >= m.next {
			want--
		}
		for _, got := range m.pages[p] {
			if got != want {
				return "", fmt.Errorf("page %d has %d, not %d", p, got, want)
			}
		}
	}
	return "whole", nil
}

// shout says a word on the console, that many times, a line each: WORD TIMES.
func shout(words []string) (string, error) {
	times, err := strconv.Atoi(words[1])
	if err != nil {
		return "", err
	}
	_, err = os.Stdout.WriteString(strings.Repeat(words[0]+"\n", times))
	return "said", err
}

// disk writes its argument to the start of the disk, synchronously, or reads what is there.
func disk(words []string) (string, error) {
	f, err := os.OpenFile("/dev/vda", os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // written synchronously
	if len(words) > 0 {
		_, err := f.WriteAt([]byte(words[0]), 4096)
		return "written", err
	}
	b := make([]byte, 5)
	_, err = f.ReadAt(b, 4096)
	return string(b), err
}

// configure gives the interface an address and a default route: ADDRESS GATEWAY.
func configure(words []string) (string, error) {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return "", err
	}
	address, err := netlink.ParseAddr(words[0])
	if err != nil {
		return "", err
	}
	// The loopback interface stays down, so that what is sent to 127.0.0.1 leaves.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
		return "", err
	}
	return link.Attrs().HardwareAddr.String(), errors.Join(
		netlink.AddrAdd(link, address), netlink.LinkSetUp(link),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(words[1])}))
}

// dial makes attempts, each a pair NETWORK ADDRESS, all at once, and returns
// what came of each.
func dial(words []string) (string, error) {
	results := make([]string, len(words)/2)
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() {
			answer, err := talk(words[2*i], words[2*i+1])
			if err != nil {
				answer = "error: " + err.Error()
			}
			results[i] = answer
		})
	}
	group.Wait()
	return strings.Join(results, "|"), nil
}

// limit bounds an attempt.
const limit = 2 * time.Second

// talk sends a line and returns the line that comes back.
func talk(network, address string) (string, error) {
	if network == "udp" {
		return talkUDP(address)
	}
	conn, err := net.DialTimeout(network, address, limit)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // a test of what was received
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// talkUDP takes an answer from anywhere: who is asked by broadcast answers for himself.
func talkUDP(address string) (string, error) {
	to, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return "", err
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // a test of what was received
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := conn.WriteTo([]byte("hello\n"), to); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, _, err := conn.ReadFrom(b)
	return strings.TrimSpace(string(b[:n])), err
}
