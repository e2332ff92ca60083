// Package e2e tests SmolVM as its users meet it: real VMs, the real command, and
// people who mean harm.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/testworld"
)

const (
	hostAddress      = testworld.HostAddress
	neighbourAddress = testworld.NeighbourAddress
	// smolvmPath is where TestMain puts the command.
	smolvmPath = testworld.Scratch + "/smolvm"
)

var world *testworld.World

func TestMain(m *testing.M) {
	testworld.Main(func(w *testworld.World) int {
		world = w
		if err := buildCommand(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	})
}

// buildCommand builds smolvm as make does, but for the guest program, which make
// built.
func buildCommand() error {
	cmd := exec.Command("go", "build", "-o", smolvmPath, "github.com/smolvm/smolvm/cmd/smolvm")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build smolvm: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
