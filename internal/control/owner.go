package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/smolvm/smolvm/internal/logfile"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/vmm"
)

// instructionsVariable tells a background owner what to do, as JSON.
const instructionsVariable = "SMOLVM_OWN"

// The files that a background owner is given.
const (
	lockFD   = 3 // the VM's lock
	reportFD = 4 // where it tells what comes of it: see report
)

// instructions are what a background owner is told.
type instructions struct {
	Dir         string          `json:"dir"` // the VM's
	DataDir     string          `json:"data_dir"`
	Accelerator vmm.Accelerator `json:"accel,omitempty"`
	ColdBoot    bool            `json:"cold_boot,omitempty"`
	// DiscardMemory: a VM that was suspended boots.
	DiscardMemory bool `json:"discard_memory,omitempty"`
	Adopt         bool `json:"adopt,omitempty"` // the VM runs already
}

func ownerLogPath(dir string) string { return filepath.Join(dir, machine.OwnerLog) }

// Own is the life of a background owner.
func Own(ctx context.Context, opts Options, name string) error {
	var told instructions
	text := os.Getenv(instructionsVariable)
	if text == "" {
		return errors.New("this is for smolvm itself to start: use smolvm start")
	}
	if err := errors.Join(os.Unsetenv(instructionsVariable), json.Unmarshal([]byte(text), &told)); err != nil {
		return fmt.Errorf("read instructions: %w", err)
	}
	// QEMU and others must not inherit them.
	syscall.CloseOnExec(lockFD)
	syscall.CloseOnExec(reportFD)
	log, err := logfile.Continue(ownerLogPath(told.Dir), logfile.Limit)
	if err != nil {
		return err
	}
	defer log.Close()
	to := newReporter(os.NewFile(reportFD, "report"))
	opts.DataDir, opts.Accelerator, opts.ColdBoot, opts.Detached = told.DataDir, told.Accelerator, told.ColdBoot, true
	opts.DiscardMemory = told.DiscardMemory
	opts.Log, opts.Progress = slog.New(to.handler(slog.NewTextHandler(log, nil))), to.progress
	err = own(ctx, opts, name, told.Adopt, to)
	to.end(err)
	return err
}

func own(ctx context.Context, opts Options, name string, adopt bool, to *reporter) error {
	host, err := NewHost(opts)
	if err != nil {
		return err
	}
	vm, err := host.Inherit(ctx, name, os.NewFile(lockFD, "lock"))
	if err != nil {
		return errors.Join(err, host.Close())
	}
	begin := vm.Start
	if adopt {
		begin = vm.Adopt
	}
	if err := begin(ctx); err != nil {
		return errors.Join(err, vm.Close())
	}
	to.ready()
	// Somebody may start it again in the moment in which it has ended.
	for retired := false; !retired && err == nil && ctx.Err() == nil; {
		_, _ = vm.Wait(ctx)
		retired, err = vm.Retire()
	}
	// If a signal has ended the wait, this ends the VM.
	err = errors.Join(err, vm.Close())
	host.drain()
	return err
}
