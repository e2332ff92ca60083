package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvm/smolvm"
)

// TestRun looks at what commands give back.
func TestRun(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()

	t.Run("result", func(t *testing.T) {
		res, err := vm.Run(t.Context(), "echo out; echo err >&2; exit 3")
		if err != nil || res.Stdout != "out\n" || res.Stderr != "err\n" || res.ExitCode != 3 {
			t.Errorf("%+v, %v", res, err)
		}
		res, err = vm.Run(t.Context(), "kill -TERM $$")
		if err != nil || res.ExitCode != 128+15 {
			t.Errorf("by signal: %+v, %v", res, err)
		}
	})

	t.Run("background", func(t *testing.T) {
		// The server holds its output for as long as it lives, and Run returns all the same.
		start := time.Now()
		run(t, vm, "python3 -m http.server 8000 & echo started")
		t.Logf("returned after %v", time.Since(start))
		waitPort(t, vm, 8000)
		port := expose(t, vm, 8000, 0)
		for range 20 { // each request is logged to the output of a command long gone
			if _, err := get("127.0.0.1", port, "/"); err != nil {
				t.Fatal(err)
			}
		}
	})

	t.Run("streams", func(t *testing.T) {
		cmd := vm.Command(t.Context(), "sh", "-c", `pwd; printenv A; tr a-z A-Z; echo done >&2`)
		var stdout, stderr bytes.Buffer
		cmd.Dir, cmd.Env = "/tmp", []string{"A=it's \"quoted\""}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("shout\n"), &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if want := "/tmp\nit's \"quoted\"\nSHOUT\n"; stdout.String() != want || stderr.String() != "done\n" {
			t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
		}
	})

	t.Run("conversation", func(t *testing.T) {
		in, input := io.Pipe()
		output, out := io.Pipe()
		cmd := vm.Command(t.Context(), "sed", "-u", "s/^/> /")
		cmd.Stdin, cmd.Stdout = in, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		for _, line := range []string{"one\n", "two\n"} {
			if _, err := io.WriteString(input, line); err != nil {
				t.Fatal(err)
			}
			if n, err := io.ReadAtLeast(output, buf, len(line)+2); err != nil || string(buf[:n]) != "> "+line {
				t.Errorf("answer %q, %v", buf[:n], err)
			}
		}
		input.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})

	t.Run("signal", func(t *testing.T) {
		output, out := io.Pipe()
		cmd := vm.Command(t.Context(), "sh", "-c", `trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.1; done`)
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		if _, err := io.ReadAtLeast(output, buf, len("ready\n")); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, output)
		if err := cmd.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		var exit *smolvm.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
			t.Errorf("after the signal: %v", err)
		}
	})

	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := vm.Command(ctx, "sh", "-c", "echo $$ >/tmp/pid; exec sleep 1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the command runs", func() error {
			_, err := vm.Command(t.Context(), "test", "-s", "/tmp/pid").Output()
			return err
		})
		cancel()
		if err := cmd.Wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled command: %v", err)
		}
		eventually(t, "the command is dead in the guest", func() error {
			return vm.Command(t.Context(), "sh", "-c", "! kill -0 $(cat /tmp/pid)").Run()
		})
	})

	t.Run("cannot start", func(t *testing.T) {
		var start *smolvm.StartError
		if err := vm.Command(t.Context(), "no-such-program").Run(); !errors.As(err, &start) || !start.NotFound {
			t.Errorf("no program: %v", err)
		}
		cmd := vm.Command(t.Context(), "true")
		cmd.Dir = "/no/such/dir"
		if err := cmd.Run(); !errors.As(err, &start) {
			t.Errorf("no directory: %v", err)
		}
	})

	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if res, err := vm.Run(t.Context(), "head -c 100000 /dev/zero | tr '\\0' x"); err != nil || len(res.Stdout) != 100000 {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
	})
}
