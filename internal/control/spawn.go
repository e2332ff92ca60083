package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/smolvm/smolvm/internal/machine"
)

// adopt gives a VM that lives on without its owner a new one.
func (h *Host) adopt(ctx context.Context, name string) error {
	vm, err := h.Host.Open(ctx, name)
	if err != nil {
		return err
	}
	if _, err := h.program(); err != nil {
		return vm.Adopt(ctx) // rather by this process than by none
	}
	return h.startOwner(ctx, vm, true)
}

// program is what a background owner runs.
func (h *Host) program() (string, error) {
	if h.opts.Program != "" {
		return h.opts.Program, nil
	}
	program, err := exec.LookPath("smolvm")
	if err != nil {
		return "", fmt.Errorf("find the command smolvm, which runs VMs in the background: %w", err)
	}
	return program, nil
}

// spawned is a background owner that this process started.
type spawned struct {
	cmd     *exec.Cmd
	reports *os.File
	ended   chan struct{} // closed when end is set
	end     error
}

// startOwner hands a VM over to a process of its own, and returns once that has started it. When
// ctx ends before, the owner undoes what it has begun, and is waited for.
func (h *Host) startOwner(ctx context.Context, vm *machine.VM, adopt bool) error {
	owner, err := h.spawn(ctx, vm, adopt)
	if err != nil {
		return fmt.Errorf("start owner: %w", err)
	}
	defer owner.reports.Close() //nolint:errcheck // only read from
	stop := context.AfterFunc(ctx, func() { _ = owner.cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	err = h.follow(owner.reports)
	if err == nil {
		return nil
	}
	<-owner.ended // and what it began is undone
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the owner of VM %q ended before it was up: %w; see %s", vm.Name(), owner.end, ownerLogPath(vm.Dir()))
	}
	return err
}

// spawn starts an owner and makes it the VM's.
func (h *Host) spawn(ctx context.Context, vm *machine.VM, adopt bool) (_ *spawned, err error) {
	program, err := h.program()
	if err != nil {
		return nil, err
	}
	told, err := json.Marshal(instructions{
		Dir: vm.Dir(), DataDir: h.Root(), Accelerator: h.opts.Accelerator, ColdBoot: h.opts.ColdBoot,
		DiscardMemory: h.opts.DiscardMemory, Adopt: adopt,
	})
	if err != nil {
		return nil, err
	}
	reports, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, report.Close())
		if err != nil {
			err = errors.Join(err, reports.Close())
		}
	}()
	// Only what Go says of a crash comes this way.
	log, err := os.OpenFile(ownerLogPath(vm.Dir()), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // never written to here
	s := &spawned{cmd: exec.Command(program, "own", vm.Name()), reports: reports, ended: make(chan struct{})}
	s.cmd.Dir, s.cmd.Stderr = "/", log
	s.cmd.Env = append(os.Environ(), instructionsVariable+"="+string(told))
	// It lives on when this process ends, whatever happens to the terminal.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = vm.HandOver(ctx, func(lock *os.File) error {
		s.cmd.ExtraFiles = []*os.File{lockFD - 3: lock, reportFD - 3: report}
		return s.cmd.Start()
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(s.ended)
		s.end = s.cmd.Wait()
	}()
	return s, nil
}

// follow hands on what an owner tells until it is up, or has failed.
func (h *Host) follow(from io.Reader) error {
	d := json.NewDecoder(from)
	for {
		var r report
		if err := d.Decode(&r); err != nil {
			return io.ErrUnexpectedEOF
		}
		switch {
		case r.Ready:
			return nil
		case r.Problem != nil:
			return r.Problem.err()
		case r.Progress != nil && h.opts.Progress != nil:
			h.opts.Progress(*r.Progress)
		case r.Log != nil:
			r.Log.emit(h.opts.Log)
		}
	}
}
