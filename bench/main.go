// Bench measures SmolVM on this host and writes the figures, each beside the
// peer or the limit that it can be held against. It runs in a network namespace of
// its own, and installs nothing: scripts/peers.sh unpacks the peers.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/smolvm/smolvm/internal/guestlink/linktest"
	"github.com/smolvm/smolvm/internal/testworld"
)

// settings say how much is measured.
type settings struct {
	rounds int           // of every comparison
	length time.Duration // of one measurement of throughput
	vms    int           // to start one after the other
	crowd  int           // that run together
	clones int           // of one template, that run together
	peers  string        // directory of the peers
}

// The parts of the benchmark, in the order of the results.
const (
	partVM        = "vm"
	partStart     = "start"
	partCopies    = "copies"
	partFolders   = "folders"
	partCommand   = "command"
	partForward   = "forward"
	partForwardVM = "forward-vm"
	partPull      = "pull"
)

func main() {
	linktest.Main()
	playRole()
	out := flag.String("out", "bench/RESULTS.md", "file to write")
	only := flag.String("only", "", "measure these parts only, separated by commas: vm, start, copies, folders, command, forward, forward-vm, pull")
	var set settings
	flag.IntVar(&set.rounds, "rounds", 6, "rounds of every comparison of forwarding")
	seconds := flag.Float64("seconds", 1, "length of one measurement of throughput")
	flag.IntVar(&set.vms, "vms", 10, "VMs to start")
	flag.IntVar(&set.crowd, "crowd", 50, "VMs that run together while the command is measured")
	flag.IntVar(&set.clones, "clones", 100, "VMs of one template that run together")
	flag.StringVar(&set.peers, "peers", "", "directory of the peers' programs: what scripts/peers.sh prints")
	flag.Parse()
	debug.SetGCPercent(400) // as the command does
	set.length = time.Duration(*seconds * float64(time.Second))
	testworld.Main(func(*testworld.World) int {
		// What is temporary goes with the world, in whatever way this process ends.
		if err := os.Setenv("TMPDIR", testworld.Scratch); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		if err := run(*out, *only, set); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	})
}

// run measures what was asked for and writes it down.
func run(out, only string, set settings) error {
	var parts []part
	for _, p := range []struct {
		name    string
		measure func(context.Context, settings) (string, error)
	}{
		{partVM, measureVMs},
		{partStart, measureStarts},
		{partCopies, measureCopies},
		{partFolders, measureFolders},
		{partCommand, measureCommand},
		{partForward, measureForwarding},
		{partForwardVM, measureForwardingToVM},
		{partPull, measurePulls},
	} {
		if only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		text, err := p.measure(context.Background(), set)
		if err != nil {
			return fmt.Errorf("measure %s: %w", p.name, err)
		}
		fmt.Print(text)
		parts = append(parts, part{p.name, text})
	}
	if len(parts) == 0 {
		return fmt.Errorf("there is no part %q", only)
	}
	return writeResults(out, parts)
}

// progress tells the one who waits.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
