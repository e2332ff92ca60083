package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/testworld"
)

// What is measured of copies, and what one of them is to reach.
const (
	forkRun     = "`Fork` to first `Run` answer of the copy"
	forkGap     = "longest wait of a client of the VM meanwhile"
	usualGap    = "longest wait of a client otherwise, in as long a time"
	suspendVM   = "`Suspend`"
	resumeRun   = "`Start` of a suspended VM to first `Run` answer"
	snapshotVM  = "`Snapshot`"
	restoreRun  = "`Restore` to first `Run` answer"
	copiesRound = 20

	forkTarget = 200 * time.Millisecond
)

// measureCopies measures VMs that go on from others, beside starts from a template.
func measureCopies(ctx context.Context, _ settings) (_ string, err error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	c := copier{clones: clones{dir: testworld.Scratch + "/copies", s: samples[time.Duration]{}, stages: samples[time.Duration]{}}}
	vm, err := c.launch(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	if c.port, err = c.serve(ctx, vm); err != nil {
		return "", err
	}
	for i := range copiesRound {
		if err := c.round(ctx, vm); err != nil {
			return "", err
		}
		progress("copy %d of %d", i+1, copiesRound)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Copies\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`): %d rounds, medians. %s, a VM of %d MiB that serves a page. ",
		partCopies, copiesRound, on, cloneMemory)
	limit := c.s.median(cloneStart)
	fmt.Fprintf(&b, "Beside them, `%s` from a template: %s.\n\n", cloneStart, ms(limit))
	fmt.Fprintf(&b, "| what | median | worst | ÷ that | to reach |\n|---|---:|---:|---:|---|\n")
	for _, name := range []string{forkRun, forkGap, usualGap, suspendVM, resumeRun, snapshotVM, restoreRun} {
		target := ""
		if name == forkRun {
			target = ms(forkTarget) + ": reached"
			if c.s.median(name) > forkTarget {
				target = ms(forkTarget) + ": **missed**"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.2f | %s |\n", name, ms(c.s.median(name)), ms(c.s.most(name)), over(c.s.median(name), limit), target)
	}
	fmt.Fprintf(&b, "\nA snapshot takes %d MB of the disk, a copy %d MB of memory (PSS of its QEMU, beside the VM and no other copy).\n", c.snapshot/1e6, c.memory/1e6)
	return b.String(), nil
}

// copier copies a VM.
type copier struct {
	clones
	port             int // of the VM's page
	snapshot, memory int64
}

// answered is a VM that began has made, once it has answered a command.
func answered(ctx context.Context, begin func() (*smolvm.VM, error)) (*smolvm.VM, error) {
	vm, err := begin()
	if err != nil {
		return nil, err
	}
	if _, err := vm.Run(ctx, "true"); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

// round measures each kind of copy once.
func (c *copier) round(ctx context.Context, vm *smolvm.VM) error {
	var made *smolvm.VM
	begin := func(name string, start func() (*smolvm.VM, error)) error {
		err := timed(c.s, name, func() (err error) { made, err = answered(ctx, start); return err })
		return err
	}
	if err := begin(cloneStart, func() (*smolvm.VM, error) { return c.launch(ctx) }); err != nil {
		return err
	}
	if err := made.Close(); err != nil {
		return err
	}
	began := time.Now()
	gap, err := c.watch(func() error {
		return begin(forkRun, func() (*smolvm.VM, error) {
			copies, err := vm.Fork(ctx, 1)
			if err != nil {
				return nil, err
			}
			return copies[0], nil
		})
	})
	if err != nil {
		return err
	}
	c.s.add(forkGap, gap)
	took := time.Since(began)
	info, err := made.Info(ctx)
	if err == nil {
		c.memory, err = pss(info.VMM.PID)
	}
	if err = errors.Join(err, made.Close()); err != nil {
		return err
	}
	gap, err = c.watch(func() error { time.Sleep(took); return nil })
	if err != nil {
		return err
	}
	c.s.add(usualGap, gap)
	if err := timed(c.s, suspendVM, func() error { return vm.Suspend(ctx) }); err != nil {
		return err
	}
	err = begin(resumeRun, func() (*smolvm.VM, error) { return vm, vm.Start(ctx) })
	if err != nil {
		return err
	}
	var snapshot smolvm.Snapshot
	err = timed(c.s, snapshotVM, func() (err error) { snapshot, err = vm.Snapshot(ctx, ""); return err })
	if err != nil {
		return err
	}
	c.snapshot = snapshot.Size
	dir := smolvm.DataDir(c.dir)
	err = begin(restoreRun, func() (*smolvm.VM, error) { return smolvm.Restore(ctx, snapshot.Name, dir) })
	if err == nil {
		err = made.Close()
	}
	return errors.Join(err, smolvm.RemoveSnapshot(ctx, snapshot.Name, dir))
}

// watch fetches the VM's page again and again while something is done, and returns the longest
// that it took.
func (c *copier) watch(do func() error) (longest time.Duration, err error) {
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port))
		for {
			began := time.Now()
			if _, err := request(address); err != nil {
				stopped <- err
				return
			}
			longest = max(longest, time.Since(began))
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
		}
	}()
	err = do()
	close(stop)
	return longest, errors.Join(err, <-stopped)
}
