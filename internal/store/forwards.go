package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const forwardsFile = "forwards.json"

// Forward is a port that is exposed, and that the VM's next start exposes again.
type Forward struct {
	Protocol  string `json:"proto"`
	GuestPort int    `json:"guest_port"`
	HostPort  int    `json:"host_port"`           // the one that it got last
	Wanted    int    `json:"wanted,omitempty"`    // the one that was asked for; 0: any
	Strict    bool   `json:"strict,omitempty"`    // no other one will do
	Transport string `json:"transport,omitempty"` // set when one was forced
}

// Forwards returns what UpdateForwards wrote last.
func (c *Claim) Forwards() ([]Forward, error) { return readForwards(c.Dir()) }

// UpdateForwards changes what the next start exposes. The file is replaced at once, but
// is not forced to disk, for that would take longer than all else that exposing
// a port needs: after a power failure the last changes may be missing, and the
// VM's record is not concerned.
func (c *Claim) UpdateForwards(change func([]Forward) []Forward) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lock == nil {
		return errNotClaimed
	}
	forwards, err := readForwards(c.dir)
	if err != nil {
		return err
	}
	return writeForwards(c.dir, change(forwards))
}

func readForwards(dir string) ([]Forward, error) {
	path := filepath.Join(dir, forwardsFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read exposed ports: %w", err)
	}
	var forwards []Forward
	if err := json.Unmarshal(data, &forwards); err != nil {
		return nil, fmt.Errorf("read exposed ports: %s (remove it to expose none): %w", path, err)
	}
	return forwards, nil
}

func writeForwards(dir string, forwards []Forward) error {
	data, err := json.Marshal(forwards)
	if err != nil {
		return fmt.Errorf("write exposed ports: %w", err)
	}
	path := filepath.Join(dir, forwardsFile)
	// Only the VM's owner writes, under the claim's lock: the name is nobody else's.
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write exposed ports: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write exposed ports: %w", err)
	}
	return nil
}
