package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tools are the programs that scripts/peers.sh unpacked.
type tools struct{ root string }

// command is a tool, with the libraries that were unpacked with it.
func (t tools) command(program string, args ...string) (*exec.Cmd, error) {
	if t.root == "" {
		return nil, fmt.Errorf("%s is not here: give -peers what scripts/peers.sh prints", program)
	}
	path := filepath.Join(t.root, program)
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	libraries, err := filepath.Glob(filepath.Join(t.root, "usr/lib/*-linux-gnu*"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
	return cmd, nil
}

// versions says which these programs are: "socat 1.7, wrk 4.1".
func (t tools) versions(programs ...string) (string, error) {
	list, err := os.ReadFile(filepath.Join(filepath.Dir(t.root), "versions"))
	if err != nil {
		return "", err
	}
	var found []string
	for line := range strings.Lines(string(list)) {
		if name, _, _ := strings.Cut(line, " "); slices.Contains(programs, name) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return strings.Join(found, ", "), nil
}
