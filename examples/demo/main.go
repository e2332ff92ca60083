// Demo starts a VM, runs a web server in it, opens it on localhost and says how
// long each step took. Then it removes everything.
package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/smolvm/smolvm"
)

func main() {
	stay := flag.Bool("stay", false, "wait for Enter before everything is removed")
	verbose := flag.Bool("v", false, "log what SmolVM does")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := demo(ctx, *stay, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const guestPort = 8000

// startServer makes a page in the guest and serves it. The server outlives the
// command that starts it.
const startServer = `mkdir -p /srv/www && cd /srv/www &&
echo "<h1>Hello from $(hostname), a VM with Linux $(uname -r)</h1>" > index.html &&
python3 -m http.server 8000 &`

func demo(ctx context.Context, stay, verbose bool) (err error) {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	opts := []smolvm.Option{
		smolvm.Logger(slog.New(tint.NewTextHandler(os.Stderr, &tint.Options{
			Level: level, NoColor: !term.IsTerminal(int(os.Stderr.Fd())),
		}))),
		smolvm.OnProgress(func(p smolvm.Progress) { fmt.Fprintln(os.Stderr, " ", p) }),
	}
	var t timer

	t.start("image")
	if _, err := smolvm.Pull(ctx, "debian", opts...); err != nil {
		return err
	}
	t.start("boot")
	vm, err := smolvm.Launch(ctx, opts...)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := vm.Close(); err == nil {
			err = closeErr
		}
	}()
	t.start("command")
	if res, err := vm.Run(ctx, startServer); err != nil {
		return err
	} else if res.ExitCode != 0 {
		return fmt.Errorf("start server: exit code %d: %s", res.ExitCode, res.Stderr)
	}
	t.start("expose")
	port, err := vm.ExposeLocal(ctx, guestPort)
	if err != nil {
		return err
	}
	t.start("first response")
	if err := vm.WaitPort(ctx, guestPort); err != nil {
		return err
	}
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	page, err := get(ctx, url)
	if err != nil {
		return err
	}
	t.stop()
	other, err := get(ctx, "http://localhost:"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	if !bytes.Equal(page, other) {
		return fmt.Errorf("127.0.0.1 and localhost answer differently")
	}

	info, err := vm.Info(ctx)
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(page), "\n")
	fmt.Println("url:        ", url)
	fmt.Println("page:       ", line)
	fmt.Println("transport:  ", vm.Forwards()[0].Transport)
	fmt.Println("accelerator:", info.VMM.Accelerator)
	t.print()
	if stay {
		fmt.Println("Press Enter to remove the VM.")
		wait(ctx)
	}
	return nil
}

// get fetches a page. A connection may still be refused for a moment: the
// server listens a little before it accepts.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: (&net.Dialer{}).DialContext}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// wait returns on Enter, at the end of the input, or when ctx ends.
func wait(ctx context.Context) {
	enter := make(chan struct{})
	go func() {
		defer close(enter)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	}()
	select {
	case <-enter:
	case <-ctx.Done():
	}
}

// timer takes the time of stages that follow one another.
type timer struct {
	stages []stage
	since  time.Time
}

type stage struct {
	name string
	took time.Duration
}

func (t *timer) start(name string) {
	t.stop()
	t.stages = append(t.stages, stage{name: name})
	t.since = time.Now()
}

func (t *timer) stop() {
	if n := len(t.stages); n > 0 && t.stages[n-1].took == 0 {
		t.stages[n-1].took = time.Since(t.since)
	}
}

func (t *timer) print() {
	for _, s := range t.stages {
		fmt.Printf("%-15s %7.0f ms\n", s.name, float64(s.took.Microseconds())/1000)
	}
}
