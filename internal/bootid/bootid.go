// Package bootid tells one run of the host's kernel from another.
package bootid

import (
	"fmt"
	"os"
	"strings"
)

// Read names this run of the host's kernel.
func Read() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
