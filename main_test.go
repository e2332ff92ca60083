package smolvm_test

import (
	"os"
	"testing"

	"github.com/smolvm/smolvm/internal/testworld"
)

// TestMain runs the examples, which start VMs, in a network of their own and on a
// data directory of their own.
func TestMain(m *testing.M) {
	testworld.Main(func(*testworld.World) int {
		os.Setenv("SMOLVM_DATA_DIR", testworld.Scratch+"/data")
		return m.Run()
	})
}
