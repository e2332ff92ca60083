package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// roleVariable makes the program another one, so that the ends of what is measured are
// processes of their own.
const roleVariable = "SMOLVM_BENCH_ROLE"

// The roles.
const (
	roleServices = "services" // what listens in the guest
	roleClient   = "client"   // who connects on the host
	roleOwner    = "owner"    // who has forwards besides this process
)

// playRole must come first in main: a process that has a role plays it and never
// returns.
func playRole() {
	role := os.Getenv(roleVariable)
	if role == "" {
		return
	}
	os.Unsetenv(roleVariable)
	var err error
	switch role {
	case roleServices:
		err = serveAll()
	case roleClient:
		err = serveClient(os.Stdin, os.Stdout)
	case roleOwner:
		err = serveOwner()
	default:
		err = errors.New("unknown role")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench, as %s: %v\n", role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// asRole is a command that runs this program in a role.
func asRole(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd
}
