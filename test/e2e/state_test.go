package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm/internal/network"
)

// hostState is all that SmolVM could leave behind: network interfaces, addresses,
// routes, rules, kernel settings, sockets, processes, mounts, and files.
func hostState(t *testing.T, dirs ...string) []string {
	t.Helper()
	state := slices.Concat(
		lines(t, "ip", "-o", "link"), lines(t, "ip", "-o", "address"), lines(t, "ip", "route", "show", "table", "all"),
		lines(t, "ip", "rule"), lines(t, "nft", "--stateless", "list", "ruleset"), listeningSockets(t), monitors(t),
		kernelSettings(t), readLines(t, "/proc/self/mounts"),
	)
	for _, dir := range append(dirs, runtimeDir(t)) {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				state = append(state, "file "+path)
			}
			return nil
		})
	}
	return state
}

// runtimeDir is what SmolVM keeps of this network namespace. Beside it are those of others,
// which change as they please.
func runtimeDir(t *testing.T) string {
	t.Helper()
	dir, err := network.NewHost(network.Options{}).StateDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// wantState waits for the host to be as it was: some of the kernel's own clean-up
// is not done when its caller returns.
func wantState(t *testing.T, before []string, dirs ...string) {
	t.Helper()
	eventually(t, "the host is as it was: nothing left behind (+) or lost (-)", func() error {
		if diff := cmp.Diff(before, hostState(t, dirs...)); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

func lines(t *testing.T, name string, args ...string) []string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func readLines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// listeningSockets lists the bound TCP and UDP sockets of the namespace.
func listeningSockets(t *testing.T) []string {
	var sockets []string
	for _, line := range lines(t, "ss", "-Hlntu") {
		sockets = append(sockets, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(sockets)
	return sockets
}

// monitors lists the QEMUs, and the owners, that belong to this run of the tests: those that see its
// mounts, and those that the tests' own children left to init.
func monitors(t *testing.T) []string {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		name, _ := os.ReadFile(filepath.Join(proc, "comm"))
		ns, _ := os.Readlink(filepath.Join(proc, "ns/mnt"))
		comm := strings.TrimSpace(string(name))
		if ns == own && (strings.HasPrefix(comm, "qemu") || comm == "slirp4netns" || comm == "smolvm") {
			found = append(found, "process "+filepath.Base(proc)+" "+comm)
		}
	}
	return found
}

// kernelSettings reads what SmolVM changes of the kernel's settings.
func kernelSettings(t *testing.T) []string {
	var settings []string
	paths, _ := filepath.Glob("/proc/sys/net/ipv4/conf/*/*")
	for _, path := range append(paths, "/proc/sys/net/ipv4/ip_forward") {
		value, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		settings = append(settings, fmt.Sprintf("%s=%s", path, strings.TrimSpace(string(value))))
	}
	return settings
}
