package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/testworld"
)

// The starts that are measured, and the limit they are held against.
const (
	cloneStart = "Launch to first Run answer"
	cloneServe = "Launch to first HTTP 200, exposed"
	poolRun    = "Get of a Pool to first Run answer"
	qemuStart  = "QEMU alone"

	startRounds = 20
	cloneMemory = 256 // MiB
)

// startTargets are what is to be reached.
var startTargets = map[string]time.Duration{
	cloneStart: 120 * time.Millisecond, poolRun: 120 * time.Millisecond, cloneServe: 250 * time.Millisecond, closeVM: 50 * time.Millisecond,
}

// measureStarts measures VMs that go on from a template: one at a time, and many together.
func measureStarts(ctx context.Context, set settings) (string, error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	c := clones{dir: testworld.Scratch + "/clones", s: samples[time.Duration]{}, stages: samples[time.Duration]{}}
	// The first one boots the template.
	first, err := c.launch(ctx)
	if err != nil {
		return "", err
	}
	if err := first.Close(); err != nil {
		return "", err
	}
	for i := range startRounds {
		if err := c.round(ctx); err != nil {
			return "", err
		}
		progress("start %d of %d", i+1, startRounds)
	}
	if err := c.pooled(ctx); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Starts from a template\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`): %d starts one after the other, medians. %s, %d MiB a VM. ",
		partStart, startRounds, on, cloneMemory)
	limit := c.s.median(qemuStart)
	fmt.Fprintf(&b, "The limit is QEMU itself: %s from its start until a machine with nothing in it could run.\n\n", ms(limit))
	fmt.Fprintf(&b, "| what | median | worst | ÷ limit | to reach |\n|---|---:|---:|---:|---|\n")
	for _, name := range []string{cloneStart, poolRun, cloneServe, closeVM} {
		verdict := "reached"
		if c.s.median(name) > startTargets[name] {
			verdict = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.1f | %s: %s |\n",
			name, ms(c.s.median(name)), ms(c.s.most(name)), over(c.s.median(name), limit), ms(startTargets[name]), verdict)
	}
	fmt.Fprintf(&b, "\n| stage of `Launch` | median |\n|---|---:|\n")
	for _, name := range c.order {
		fmt.Fprintf(&b, "| %s | %s |\n", name, ms(c.stages.median(name)))
	}
	together, err := c.together(ctx, set.clones)
	if err != nil {
		return "", err
	}
	b.WriteString(together)
	return b.String(), nil
}

// clones are VMs of one shape.
type clones struct {
	dir    string
	s      samples[time.Duration]
	stages samples[time.Duration]
	order  []string // of the stages
}

func (c *clones) launch(ctx context.Context) (*smolvm.VM, error) {
	return smolvm.Launch(ctx, smolvm.DataDir(c.dir), smolvm.Memory(cloneMemory))
}

// round measures one start of each kind, and the limit.
func (c *clones) round(ctx context.Context) error {
	if err := timed(c.s, qemuStart, func() error { return emptyMachine(ctx) }); err != nil {
		return err
	}
	var vm *smolvm.VM
	err := timed(c.s, cloneStart, func() (err error) {
		if vm, err = c.launch(ctx); err != nil {
			return err
		}
		_, err = vm.Run(ctx, "true")
		return err
	})
	if err != nil {
		return err
	}
	if err := c.note(ctx, vm); err != nil {
		return errors.Join(err, vm.Close())
	}
	if err := timed(c.s, closeVM, vm.Close); err != nil {
		return err
	}
	err = timed(c.s, cloneServe, func() (err error) {
		if vm, err = c.launch(ctx); err != nil {
			return err
		}
		_, err = c.serve(ctx, vm)
		return err
	})
	if vm != nil {
		err = errors.Join(err, vm.Close())
	}
	return err
}

// pooled measures VMs that a pool has waiting. Another one is started meanwhile.
func (c *clones) pooled(ctx context.Context) (err error) {
	pool, err := smolvm.NewPool(1, smolvm.DataDir(c.dir), smolvm.Memory(cloneMemory))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	for range startRounds {
		for deadline := time.Now().Add(time.Minute); pool.Ready() == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				return errors.New("the pool starts no VM")
			}
		}
		var vm *smolvm.VM
		err := timed(c.s, poolRun, func() (err error) {
			vm, err = answered(ctx, func() (*smolvm.VM, error) { return pool.Get(ctx) })
			return err
		})
		if err != nil {
			return err
		}
		if err := vm.Close(); err != nil {
			return err
		}
	}
	return nil
}

// note keeps the stages of a VM's start, which must have been one from a template.
func (c *clones) note(ctx context.Context, vm *smolvm.VM) error {
	info, err := vm.Info(ctx)
	if err != nil {
		return err
	}
	if info.VMM.Origin != smolvm.FromTemplate {
		return fmt.Errorf("the VM booted: %s", info.VMM.OriginReason)
	}
	known := len(c.order) > 0
	for _, stage := range info.VMM.Stages {
		c.stages.add(stage.Name, stage.Took)
		if !known {
			c.order = append(c.order, stage.Name)
		}
	}
	return nil
}

// serve starts a web server in a VM, and returns the host port once it has answered there.
func (c *clones) serve(ctx context.Context, vm *smolvm.VM) (port int, err error) {
	if _, err := vm.Run(ctx, webServer); err != nil {
		return 0, err
	}
	if err := vm.WaitPort(ctx, guestPort); err != nil {
		return 0, err
	}
	if port, err = vm.ExposeLocal(ctx, guestPort); err != nil {
		return 0, err
	}
	_, err = request(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	return port, err
}

// together starts many, one after the other, has all of them answer, and ends them.
func (c *clones) together(ctx context.Context, count int) (_ string, err error) {
	var vms []*smolvm.VM
	end := func() error {
		errs := make([]error, len(vms))
		var ending sync.WaitGroup
		for i, vm := range vms {
			ending.Go(func() { errs[i] = vm.Close() })
		}
		ending.Wait()
		vms = nil
		return errors.Join(errs...)
	}
	defer func() { err = errors.Join(err, end()) }()
	before, err := c.footprint(ctx)
	if err != nil {
		return "", err
	}
	s := samples[time.Duration]{}
	memory := samples[int64]{}
	const each, begin, last = "each", "first", "last"
	for i := range count {
		var vm *smolvm.VM
		began := time.Now()
		if vm, err = c.launch(ctx); err != nil {
			return "", fmt.Errorf("start clone %d: %w", i+1, err)
		}
		vms = append(vms, vm)
		if _, err := vm.Run(ctx, "true"); err != nil {
			return "", err
		}
		switch took := time.Since(began); {
		case i < count/10:
			s.add(begin, took)
		case i >= count-count/10:
			s.add(last, took)
		}
		// A guest that runs takes what processors there are, idle as it is: not that is measured.
		if err := vm.Pause(ctx); err != nil {
			return "", err
		}
		if i%10 == 9 {
			progress("%d of %d clones", i+1, count)
		}
	}
	for _, vm := range vms {
		info, err := vm.Info(ctx)
		if err != nil {
			return "", err
		}
		used, err := pss(info.VMM.PID)
		if err != nil {
			return "", err
		}
		memory.add(each, used)
	}
	answered := 0
	for _, vm := range vms {
		if err := vm.Resume(ctx); err != nil {
			return "", err
		}
		if _, err := c.serve(ctx, vm); err != nil {
			return "", err
		}
		answered++
		if err := vm.Pause(ctx); err != nil {
			return "", err
		}
	}
	began := time.Now()
	if err := end(); err != nil {
		return "", err
	}
	ended := time.Since(began)
	left, err := c.footprint(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d clones together, each paused while another one is looked at, since all processors are taken by idle guests otherwise:\n\n| | | to reach |\n|---|---:|---:|\n", count)
	fmt.Fprintf(&b, "| start of the last %d ÷ of the first %d | %.2f | 1.2 |\n", count/10, count/10, over(s.median(last), s.median(begin)))
	fmt.Fprintf(&b, "| memory of each (PSS of its QEMU), median | %d MB | 25 MB |\n", memory.median(each)/1e6)
	fmt.Fprintf(&b, "| answered through their exposed ports | %d of %d | all |\n", answered, count)
	fmt.Fprintf(&b, "| stopped and deleted, all at once | %s a VM | |\n", ms(ended/time.Duration(count)))
	fmt.Fprintf(&b, "| interfaces, processes and VMs left | %d | 0 |\n", left-before)
	return b.String(), nil
}

// footprint counts interfaces, processes and VMs.
func (c *clones) footprint(ctx context.Context) (int, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	processes, err := children()
	if err != nil {
		return 0, err
	}
	vms, err := smolvm.List(ctx, smolvm.DataDir(c.dir))
	return len(interfaces) + len(processes) + len(vms), err
}

// emptyMachine starts QEMU with the least machine, until its monitor has answered.
func emptyMachine(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-machine", "microvm", "-accel", "tcg", "-S", "-monitor", "stdio")
	cmd.Stdin = strings.NewReader("quit\n")
	return cmd.Run()
}
