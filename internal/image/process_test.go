package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestEnsureInManyProcesses(t *testing.T) {
	s, builds := fakeStore(t, nil)
	var processes []*process
	for range 6 {
		processes = append(processes, startHelper(t, "build", s.dir, builds))
	}
	ids := map[string]bool{}
	for _, p := range processes {
		ids[p.until(t, "image ")] = true
		if err := p.cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if len(ids) != 1 {
		t.Errorf("images %v", ids)
	}
	if n := countBuilds(t, builds); n != 1 {
		t.Errorf("built %d times", n)
	}
}

// TestKilledBuild kills a builder and looks for what it leaves: no process, no image,
// and no file after the next build.
func TestKilledBuild(t *testing.T) {
	s, builds := fakeStore(t, nil)
	builder := startHelper(t, "hang", s.dir, builds)
	child, err := strconv.Atoi(builder.until(t, "pid "))
	if err != nil {
		t.Fatal(err)
	}
	// Meanwhile another process waits for it, as long as it lives.
	waiter := startHelper(t, "build", s.dir, builds)
	waiter.until(t, "stage wait for")
	if !alive(child) {
		t.Fatal("the builder's child does not run")
	}
	debris, err := filepath.Glob(filepath.Join(s.dir, fakeName, buildPrefix+"*"))
	if err != nil || len(debris) != 1 {
		t.Fatalf("build directories %q, %v", debris, err)
	}
	if _, err := s.Get(fakeName); !errors.Is(err, ErrNotFound) {
		t.Errorf("half an image is found: %v", err)
	}
	builder.kill(t)
	id := waiter.until(t, "image ")
	waitFor(t, "the builder's child ends", func() bool { return !alive(child) })
	if err := waiter.cmd.Wait(); err != nil {
		t.Error(err)
	}
	wantFiles(t, s, currentLink, lockFile, id)
	if n := countBuilds(t, builds); n != 2 {
		t.Errorf("built %d times", n)
	}
}

func TestCancelledBuild(t *testing.T) {
	pids := make(chan int, 1)
	s, builds := fakeStore(t, func(ctx context.Context, job *Job) error {
		_, err := job.run(ctx, command{
			name: "/bin/sh",
			// A child of the child must end, too.
			args: []string{"-c", `sleep 1000 & echo $! >&2; wait`},
			line: func(line string) {
				pid, err := strconv.Atoi(line)
				if err != nil {
					pid = -1
				}
				pids <- pid
			},
		})
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.Ensure(ctx, fakeName, PullMissing, nil)
		done <- err
	}()
	pid := <-pids
	if !alive(pid) {
		t.Fatal("the child does not run")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	waitFor(t, "the child's child ends", func() bool { return !alive(pid) })
	wantFiles(t, s)
	if n := countBuilds(t, builds); n != 1 {
		t.Errorf("built %d times", n)
	}
}

func TestCancelledWait(t *testing.T) {
	s, builds := fakeStore(t, nil)
	builder := startHelper(t, "hang", s.dir, builds)
	builder.until(t, "pid ")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Ensure(ctx, fakeName, PullMissing, func(p Progress) {
		if p.Total == 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestMountedDebris has something mounted in what a killed build left: it must survive.
func TestMountedDebris(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	s, builds := fakeStore(t, nil)
	p := startHelper(t, "mounted", s.dir, builds)
	if got := p.until(t, "result "); got != "mounted file kept, unmounted debris removed" {
		t.Error(got)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 - ext3 /dev/root rw\n"))
	f.Fuzz(func(t *testing.T, table []byte) {
		for _, point := range parseMounts(table) {
			if point == "" {
				t.Fatal("empty mount point")
			}
		}
	})
}
