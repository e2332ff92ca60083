package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endPatience bounds how long what was told to end may take.
const endPatience = 10 * time.Second

// adopt makes this process the parent of what its programs leave behind, so that
// nothing escapes nothingLeft.
func adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become parent of orphans: %w", err)
	}
	return nil
}

// nothingLeft waits until no process, interface or rule of the benchmark is left. It ends
// orphans: what a peer forked for a connection that it did not notice has ended.
func nothingLeft() error {
	deadline := time.Now().Add(endPatience)
	for {
		left, err := children()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes are left: %v", left)
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL) // it may just have ended
			if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
				return fmt.Errorf("wait for process %d: %w", pid, err)
			}
		}
	}
	if _, err := net.InterfaceByName(cable); err == nil {
		return errors.New("the cable is left")
	}
	tables, err := exec.Command("nft", "list", "tables").Output()
	if err != nil || len(tables) > 0 {
		return errors.Join(fmt.Errorf("firewall tables are left: %s", tables), err)
	}
	return nil
}

// children are the processes whose parent this one is.
func children() ([]int, error) {
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		list, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		for _, field := range strings.Fields(string(list)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
