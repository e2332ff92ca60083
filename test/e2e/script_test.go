package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/network/nettest"
	"github.com/smolvm/smolvm/internal/testworld"
)

// TestScripts runs the scripts of testdata/script: the real command on real VMs, as people
// type it. Each has a data directory of its own, which is to be empty of VMs at the end, and
// beside testscript's own commands those of scriptCommands.
//
// $SMOLVM is the path of the command, for a script that changes the PATH, and $NEIGHBOUR is a page
// of the host's neighbour, which tells who asked for it.
func TestScripts(t *testing.T) {
	newFixture(t) // nothing is left on the host at the end
	serveNeighbour(t)
	testscript.Run(t, testscript.Params{
		Dir:         "testdata/script",
		WorkdirRoot: testworld.Scratch,
		Setup:       setUpScript,
		Cmds:        scriptCommands(),
	})
}

func setUpScript(env *testscript.Env) error {
	data := filepath.Join(env.WorkDir, "data")
	home := filepath.Join(env.WorkDir, "home")
	if err := errors.Join(os.MkdirAll(home, 0o700), os.MkdirAll(data, 0o700), shareTemplates(data), os.Chmod(filepath.Dir(env.WorkDir), 0o755)); err != nil {
		return err
	}
	env.Setenv("PATH", filepath.Dir(smolvmPath)+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	env.Setenv("HOME", home)
	env.Setenv("SMOLVM", smolvmPath)
	env.Setenv("SMOLVM_DATA_DIR", data)
	env.Setenv("SMOLVM_CONFIG", filepath.Join(env.WorkDir, "config.toml"))
	env.Setenv("TERM", "xterm")
	env.Setenv("NEIGHBOUR", "http://"+neighbourAddress+":8080")
	env.Values[registriesKey{}] = registries{}
	env.Defer(func() {
		// A script that failed leaves its VMs; one that passed must not.
		if left := removeVMs(env.WorkDir, env.T().Log); len(left) > 0 {
			env.T().Log(fmt.Sprintf("the script left %v", left))
			env.T().FailNow()
		}
	})
	return nil
}

// removeVMs removes the VMs of all data directories below a directory, and returns theirs.
func removeVMs(below string, log func(...any)) (left []string) {
	for _, data := range []string{"vms", "*/vms", "*/*/vms", "*/.local/share/smolvm/vms"} {
		vms, _ := filepath.Glob(filepath.Join(below, data, "[^.]*"))
		for _, vm := range vms {
			cmd := exec.Command(smolvmPath, "rm", "-f", filepath.Base(vm))
			cmd.Env = append(os.Environ(), "SMOLVM_DATA_DIR="+filepath.Dir(filepath.Dir(vm)))
			if out, err := cmd.CombinedOutput(); err != nil {
				log(fmt.Sprintf("remove %s: %v: %s", vm, err, out))
			}
		}
		left = append(left, vms...)
	}
	return left
}

// scriptCommands are the commands of the scripts besides testscript's own.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"dialogue":  dialogue,
		"container": container,
		"registry":  registry,
		// exits CODE PROGRAM ARG... runs a program that must end with that exit code.
		"exits": func(ts *testscript.TestScript, neg bool, args []string) {
			want, err := strconv.Atoi(args[0])
			ts.Check(err)
			err = ts.Exec(args[1], args[2:]...)
			var exit *exec.ExitError
			code := 0
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else {
				ts.Check(err)
			}
			if (code == want) == neg {
				ts.Fatalf("exit code %d", code)
			}
		},
		// waitfor PROGRAM ARG... runs a program until it succeeds.
		"waitfor": func(ts *testscript.TestScript, _ bool, args []string) {
			until(ts, func() error { return ts.Exec(args[0], args[1:]...) })
		},
		// json PATH [REGEXP] looks into the JSON that was last on the standard output. PATH is names and
		// indices with dots between them. Without REGEXP it is enough that there is something.
		"json": func(ts *testscript.TestScript, neg bool, args []string) {
			got, err := lookInto([]byte(ts.ReadFile("stdout")), args[0])
			if err == nil && len(args) > 1 && !regexp.MustCompile("^(?:"+args[1]+")$").MatchString(got) {
				err = fmt.Errorf("%s is %q", args[0], got)
			}
			if (err == nil) == neg {
				ts.Fatalf("json %v: %v, found %q", args, err, got)
			}
		},
		// capture NAME [PATH] sets a variable to what was last on the standard output, or to what is
		// at a path in that JSON.
		"capture": func(ts *testscript.TestScript, _ bool, args []string) {
			value := strings.TrimSpace(ts.ReadFile("stdout"))
			if len(args) > 1 {
				var err error
				value, err = lookInto([]byte(value), args[1])
				ts.Check(err)
			}
			ts.Setenv(args[0], value)
		},
		// page PORT REGEXP waits for a page of localhost that matches.
		"page": func(ts *testscript.TestScript, _ bool, args []string) {
			port, err := strconv.Atoi(args[0])
			ts.Check(err)
			until(ts, func() error {
				body, err := get("127.0.0.1", port, "/")
				if err == nil && !regexp.MustCompile(args[1]).Match(body) {
					err = fmt.Errorf("the page is %q", body)
				}
				return err
			})
		},
		// freeport NAME sets a variable to a port that nobody uses.
		"freeport": func(ts *testscript.TestScript, _ bool, args []string) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			ts.Check(err)
			ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
			ts.Check(l.Close())
		},
		// killowner VM kills the VM's owner. killowner PROGRAM ARG... is for another user's VM: what the
		// program prints is the inspect of it.
		"killowner": func(ts *testscript.TestScript, _ bool, args []string) {
			if len(args) == 1 {
				args = []string{"smolvm", "inspect", args[0]}
			}
			ts.Check(ts.Exec(args[0], args[1:]...))
			owner, err := lookInto([]byte(ts.ReadFile("stdout")), "owner.pid")
			ts.Check(err)
			pid, err := strconv.Atoi(owner)
			ts.Check(err)
			fd, err := unix.PidfdOpen(pid, 0)
			ts.Check(err)
			defer unix.Close(fd)
			ts.Check(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
			until(ts, func() error {
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n == 0 {
					return errors.Join(err, errors.New("it lives"))
				}
				return nil
			})
		},
		// interrupt SIGNAL WHEN CODE ARG... runs smolvm, sends it a signal and wants that exit code.
		// WHEN is a file that is there by then, with patterns as shells have them, or what smolvm
		// has written by then.
		"interrupt": func(ts *testscript.TestScript, _ bool, args []string) {
			sig := unix.SignalNum("SIG" + args[0])
			if sig == 0 {
				ts.Fatalf("there is no signal %s", args[0])
			}
			cmd := exec.Command(smolvmPath, args[3:]...)
			for _, name := range []string{"PATH", "HOME", "SMOLVM_DATA_DIR", "SMOLVM_CONFIG"} {
				cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
			}
			var out nettest.Log
			cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, ts.Stdout()), ts.Stderr()
			ts.Check(cmd.Start())
			defer func() { _ = cmd.Process.Kill() }()
			until(ts, func() error {
				if files, err := filepath.Glob(ts.MkAbs(args[1])); err != nil || len(files) > 0 || strings.Contains(out.String(), args[1]) {
					return err
				}
				return fmt.Errorf("%s is not there", args[1])
			})
			ts.Check(cmd.Process.Signal(sig))
			var exit *exec.ExitError
			if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
				ts.Check(err)
			}
			if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[2] {
				ts.Fatalf("exit code %s, want %s", got, args[2])
			}
		},
		// mounttmpfs DIR SIZE mounts a small filesystem that is gone with the script.
		"mounttmpfs": func(ts *testscript.TestScript, _ bool, args []string) {
			dir := ts.MkAbs(args[0])
			ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
			ts.Defer(func() {
				// It may have become a read-only one.
				if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
					ts.Logf("remount %s: %v", dir, err)
				}
				if left := removeVMs(dir, func(said ...any) { ts.Logf("%s", said...) }); len(left) > 0 {
					ts.Logf("the script left %v", left)
				}
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					ts.Logf("unmount %s: %v", dir, err)
				}
			})
		},
	}
}

// until tries again and again, for as long as the tests are patient.
func until(ts *testscript.TestScript, try func() error) {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("in vain: %v", err)
		}
		time.Sleep(20 * time.Millisecond) // between two tries
	}
}

// lookInto returns what is at a path in JSON: a string as it is, anything else as JSON.
func lookInto(data []byte, path string) (string, error) {
	var value any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return "", fmt.Errorf("no JSON: %w: %s", err, data)
	}
	for _, step := range strings.Split(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			next, ok := v[step]
			if !ok {
				return "", fmt.Errorf("there is no %q of %s", step, path)
			}
			value = next
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(v) {
				return "", fmt.Errorf("there is no %q of %s", step, path)
			}
			value = v[i]
		default:
			return "", fmt.Errorf("there is no %q of %s", step, path)
		}
	}
	if s, ok := value.(string); ok {
		return s, nil
	}
	text, err := json.Marshal(value)
	return string(text), err
}
