package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// load is what a VM does, in the output of top --json. Its field names are a contract. What is
// per second is the mean of the time since the last look.
type load struct {
	Name        string  `json:"name"`
	CPUPercent  float64 `json:"cpu_percent"` // of one of the host's processors
	Memory      int64   `json:"memory_bytes"`
	Received    int64   `json:"received_bytes_per_second"` // by the guest, through its network
	Sent        int64   `json:"sent_bytes_per_second"`
	ToGuest     int64   `json:"ports_to_guest_bytes_per_second"` // through exposed ports
	FromGuest   int64   `json:"ports_from_guest_bytes_per_second"`
	Connections int     `json:"connections_open"`
}

func newTopCommand(g *globals) *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what VMs that run use, live",
		Long: `Show what VMs that run use, live, until Ctrl-C.

CPU is percent of one of the host's processors. NET is what the guest receives and
sends through its network, PORTS what goes through exposed ports; both per second.
With --json there is a line for each look: a list of VMs.`,
		Example: "  smolvm top\n  smolvm top --once\n  smolvm top --json --interval 5s | jq --unbuffered '.[].cpu_percent'",
		Args:    argsOfUse,
	}
	cmd.Flags().BoolVar(&once, "once", false, "end after one look")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time from one look to the next")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if interval < minInterval {
			return misuse(cmd, "--interval must be at least %s", minInterval)
		}
		out := cmd.OutOrStdout()
		show := func(loads []load) error { return loadTable(newTable(out, loadColumns()...), loads).flush() }
		if tty, ok := out.(*os.File); *asJSON {
			show = func(loads []load) error { return printJSON(out, loads) }
		} else if ok && isTerminal(tty) && !once {
			screen := openScreen(tty)
			defer screen.close()
			show = func(loads []load) error {
				var text bytes.Buffer
				if err := loadTable(newTable(&text, loadColumns()...), loads).flush(); err != nil {
					return err
				}
				return screen.draw(text.String())
			}
		}
		return endless(cmd.Context(), g.watchLoads(cmd.Context(), interval, once, show))
	}
	return cmd
}

// minInterval leaves the host some time for other things than being looked at.
const minInterval = 100 * time.Millisecond

// watchLoads shows what VMs do in each interval, until ctx ends, or once.
func (g *globals) watchLoads(ctx context.Context, interval time.Duration, once bool, show func([]load) error) error {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	before, err := g.list(ctx)
	at := time.Now()
	for err == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticks.C:
		}
		var now []smolvm.Info
		if now, err = g.list(ctx); err != nil {
			break
		}
		elapsed := time.Since(at)
		if err = show(loads(before, now, elapsed)); err != nil || once {
			return err
		}
		before, at = now, at.Add(elapsed)
	}
	return err
}

// loads compares two looks at all VMs.
func loads(before, now []smolvm.Info, elapsed time.Duration) []load {
	earlier := make(map[int]smolvm.Info)
	for _, vm := range before {
		earlier[vm.VMM.PID] = vm
	}
	list := []load{}
	for _, vm := range now {
		if vm.VMM.PID == 0 {
			continue
		}
		l := load{Name: vm.Name, Memory: vm.Usage.Memory}
		old := earlier[vm.VMM.PID] // of one that is new nothing: all that it has done is of this interval
		perSecond := func(now, before int64) int64 { return max(0, int64(float64(now-before)/elapsed.Seconds())) }
		l.CPUPercent = max(0, math.Round(1000*float64(vm.Usage.CPU-old.Usage.CPU)/float64(elapsed))/10)
		l.Received = perSecond(vm.Usage.Received, old.Usage.Received)
		l.Sent = perSecond(vm.Usage.Sent, old.Usage.Sent)
		traffic, oldTraffic := allTraffic(vm), allTraffic(old)
		l.ToGuest = perSecond(traffic.ToGuest, oldTraffic.ToGuest)
		l.FromGuest = perSecond(traffic.FromGuest, oldTraffic.FromGuest)
		l.Connections = traffic.Open
		list = append(list, l)
	}
	return list
}

// allTraffic is what has gone through all of a VM's forwards.
func allTraffic(vm smolvm.Info) smolvm.Traffic {
	var sum smolvm.Traffic
	for _, f := range vm.Forwards {
		sum = sum.Add(f.Traffic)
	}
	return sum
}

func loadColumns() []string {
	return []string{"NAME", "CPU", "MEMORY", "NET IN", "NET OUT", "PORTS IN", "PORTS OUT", "CONNECTIONS"}
}

// loadTable fills a table with what VMs do.
func loadTable(t *table, loads []load) *table {
	for _, l := range loads {
		t.row(l.Name, fmt.Sprintf("%.0f%%", l.CPUPercent), size(l.Memory), size(l.Received)+"/s", size(l.Sent)+"/s",
			size(l.ToGuest)+"/s", size(l.FromGuest)+"/s", fmt.Sprint(l.Connections))
	}
	return t
}
