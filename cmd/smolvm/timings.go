package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/smolvm/smolvm"
)

// timings are what a run spends its time on. Its methods do nothing on nil.
type timings struct {
	last   time.Time // when the last stage ended
	stages []smolvm.Stage
}

func newTimings() *timings { return &timings{last: time.Now()} }

// end ends a stage, which began when the one before ended.
func (t *timings) end(stage string) {
	if t == nil {
		return
	}
	now := time.Now()
	t.stages = append(t.stages, smolvm.Stage{Name: stage, Took: now.Sub(t.last)})
	t.last = now
}

// launched ends the stages of a launch: those that the VM's owner knows, and what was before.
func (t *timings) launched(ctx context.Context, vm *smolvm.VM) error {
	if t == nil {
		return nil
	}
	t.end("create")
	info, err := vm.Info(ctx)
	if err != nil {
		return err
	}
	create := &t.stages[len(t.stages)-1]
	for _, s := range info.VMM.Stages {
		create.Took -= s.Took
	}
	t.stages = append(t.stages, info.VMM.Stages...)
	return nil
}

// print shows all stages, and what they add up to.
func (t *timings) print(to io.Writer) {
	if t == nil {
		return
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	var total time.Duration
	for _, s := range t.stages {
		total += s.Took
		fmt.Fprintf(table, "%s\t%.1f ms\t\n", s.Name, inMilliseconds(s.Took))
	}
	fmt.Fprintf(table, "total\t%.1f ms\t\n", inMilliseconds(total))
	if err := table.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "smolvm:", err)
	}
}

func inMilliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
