package qemu

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/vmm"
)

// helpers are what this test binary does instead of tests when it is started
// again with the environment variable helperEnv.
var helpers = map[string]func() error{
	"adopt": helpAdopt,
	"own":   helpOwn,
	"user":  helpUser,
}

const (
	helperEnv = "SMOLVM_QEMU_TEST_HELPER"
	imagesEnv = "SMOLVM_TEST_IMAGES"
)

var testGuest struct {
	sync.Once
	dir, kernel, initrd string
	err                 error
}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if testGuest.dir != "" {
		if err := os.RemoveAll(testGuest.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// guest returns the kernel of the test's image, and an initial filesystem with
// the test's guest program. All users may read both.
func guest(t testing.TB) (kernel, initrd string) {
	t.Helper()
	store := os.Getenv(imagesEnv)
	if store == "" {
		t.Skipf("%s does not name a store with an image: make test makes one", imagesEnv)
	}
	testGuest.Do(func() { testGuest.err = makeTestGuest(store) })
	if testGuest.err != nil {
		t.Fatal(testGuest.err)
	}
	return testGuest.kernel, testGuest.initrd
}

func makeTestGuest(store string) (err error) {
	if testGuest.dir, err = os.MkdirTemp("", "smolvm-qemu-test-"); err != nil {
		return err
	}
	if err := os.Chmod(testGuest.dir, 0o755); err != nil {
		return err
	}
	program := filepath.Join(testGuest.dir, "guest")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build test guest: %w: %s", err, output)
	}
	contents, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	images := image.NewStore(image.Options{Dir: filepath.Join(testGuest.dir, "images"), Shared: []string{store}, Log: slog.New(slog.DiscardHandler)})
	img, err := images.Get("debian")
	if err != nil {
		return err
	}
	testGuest.kernel = img.Kernel
	testGuest.initrd, err = images.Initrd(context.Background(), img, io.NewSectionReader(bytes.NewReader(contents), 0, int64(len(contents))))
	return err
}

// testLog passes a driver's log on to the test.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// testConfig is a small emulated machine without disk and network.
func testConfig(t testing.TB) vmm.Config {
	kernel, initrd := guest(t)
	return vmm.Config{
		Dir: t.TempDir(), Kernel: kernel, Initrd: initrd,
		MemoryMiB: 256, CPUs: 1, Accelerator: vmm.TCG,
	}
}

// startMachine starts a machine that does not outlive the test.
func startMachine(t testing.TB, config vmm.Config) *machine {
	t.Helper()
	m, err := NewDriver(Options{Log: testLog(t)}).Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	})
	return m.(*machine)
}

// remote gives orders to the test's guest program.
type remote struct {
	conn  net.Conn
	lines *bufio.Reader
}

func newRemote(conn net.Conn) *remote { return &remote{conn, bufio.NewReader(conn)} }

// callGuest connects to a guest and waits until it answers.
func callGuest(ctx context.Context, m vmm.Machine) (*remote, error) {
	conn, err := m.Channel(ctx)
	if err != nil {
		return nil, err
	}
	r := newRemote(conn)
	if answer, err := r.do("ping"); err != nil || answer != "pong" {
		return nil, fmt.Errorf("guest answers %q, %w; the machine: %v", answer, err, m.Err())
	}
	return r, nil
}

// do has the guest carry an order out and returns its answer.
func (r *remote) do(order ...string) (string, error) {
	if err := r.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	if err := r.order(order...); err != nil {
		return "", err
	}
	answer, err := r.lines.ReadString('\n')
	return strings.TrimSpace(answer), err
}

// order is do for what is not answered.
func (r *remote) order(order ...string) error {
	_, err := fmt.Fprintln(r.conn, strings.Join(order, " "))
	return err
}

// bootMachine starts a machine and waits for its guest.
func bootMachine(t testing.TB, config vmm.Config) (*machine, *remote) {
	t.Helper()
	m := startMachine(t, config)
	r, err := callGuest(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, r
}

// await waits for a machine's end.
func await(t testing.TB, m vmm.Machine) error {
	t.Helper()
	select {
	case <-m.Done():
		return m.Err()
	case <-time.After(30 * time.Second):
		t.Fatal("the machine does not end")
		return nil
	}
}
