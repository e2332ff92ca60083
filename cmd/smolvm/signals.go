package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// endless is the error of a verb that goes on until it is told to end: a signal is no failure
// then, and there is nothing to say.
func endless(ctx context.Context, err error) error {
	if sig, ok := errors.AsType[signalled](context.Cause(ctx)); ok && err != nil {
		return exitStatus(128 + int(sig))
	}
	return err
}

// relayed is a command that signals are passed on to.
type relayed interface {
	Start() error
	Wait() error
	Signal(sig os.Signal) error
}

// relaying says how a signal is passed on.
type relaying struct {
	as    syscall.Signal // 0: as it is
	grace time.Duration  // how long the command may take to end then, before it is killed; 0: for ever
}

// relay runs a command. A signal that ends ctx while the command is started ends that, and
// later is the command's: how it takes it decides what relay returns.
func relay(ctx context.Context, how relaying, command func(context.Context) (relayed, error)) error {
	life, kill := context.WithCancelCause(context.WithoutCancel(ctx))
	defer kill(nil)
	started := context.AfterFunc(ctx, func() { kill(context.Cause(ctx)) })
	cmd, err := command(life)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if started() {
		defer context.AfterFunc(ctx, func() {
			sig, ok := errors.AsType[signalled](context.Cause(ctx))
			if !ok || cmd.Signal(cmp.Or(how.as, syscall.Signal(sig))) != nil {
				kill(context.Cause(ctx))
				return
			}
			if how.grace == 0 {
				return
			}
			timer := time.NewTimer(how.grace)
			defer timer.Stop()
			select {
			case <-timer.C:
				kill(context.Cause(ctx))
			case <-life.Done(): // it has ended
			}
		})()
	}
	return cmd.Wait()
}
