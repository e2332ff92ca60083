// The kernel's part of multipath TCP is code that every copy of a guest can do without.
//
//go:debug multipathtcp=0

// Command smolvm-guest is the guest's PID 1. The host puts it into the initramfs;
// nobody runs it by hand.
package main

import (
	"fmt"
	"os"

	"github.com/smolvm/smolvm/internal/guest"
)

func main() {
	fmt.Fprintln(os.Stderr, "smolvm-guest:", guest.Main())
	os.Exit(1)
}
