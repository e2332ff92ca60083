package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
)

// fakeCommand is a command in no guest: it ends with its life, or as its end says.
type fakeCommand struct {
	life    context.Context
	start   func() error
	signals []os.Signal
	deaf    bool
	end     chan error
}

func (c *fakeCommand) Start() error {
	if c.start != nil {
		return c.start()
	}
	return nil
}

func (c *fakeCommand) Wait() error {
	select {
	case err := <-c.end:
		return err
	case <-c.life.Done():
		return c.life.Err()
	}
}

func (c *fakeCommand) Signal(sig os.Signal) error {
	if c.deaf {
		return errors.New("nobody hears")
	}
	c.signals = append(c.signals, sig)
	return nil
}

func relayFake(ctx context.Context, c *fakeCommand) error {
	return relay(ctx, relaying{}, func(life context.Context) (relayed, error) {
		c.life = life
		return c, nil
	})
}

func TestSignalIsTheCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(context.Background())
		c := &fakeCommand{end: make(chan error)}
		done := make(chan error, 1)
		go func() { done <- relayFake(ctx, c) }()
		synctest.Wait()
		cancel(signalled(syscall.SIGTERM))
		synctest.Wait()
		if !slices.Equal(c.signals, []os.Signal{syscall.SIGTERM}) {
			t.Errorf("the command got %v", c.signals)
		}
		if c.life.Err() != nil {
			t.Error("the command was killed")
		}
		own := errors.New("exit code 3")
		c.end <- own
		if err := <-done; err != own {
			t.Errorf("the end is %v", err)
		}
	})
}

func TestSignalEndsTheStart(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &fakeCommand{}
	c.start = func() error {
		cancel(signalled(syscall.SIGINT))
		<-c.life.Done()
		return c.life.Err()
	}
	if err := relayFake(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("the start ended with %v", err)
	}
	if len(c.signals) > 0 {
		t.Errorf("a command that did not start got %v", c.signals)
	}
}

func TestCommandThatHearsNothingIsKilled(t *testing.T) {
	for name, c := range map[string]struct {
		deaf  bool
		cause error
	}{
		"no way to signal": {true, signalled(syscall.SIGINT)},
		"no signal":        {false, errors.New("another reason")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(context.Background())
				done := make(chan error, 1)
				go func() { done <- relayFake(ctx, &fakeCommand{deaf: c.deaf, end: make(chan error)}) }()
				synctest.Wait()
				cancel(c.cause)
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("the command ended with %v", err)
				}
			})
		})
	}
}

func TestEndless(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	failure := errors.New("no such thing")
	if err := endless(ctx, failure); err != failure {
		t.Errorf("without a signal: %v", err)
	}
	cancel(signalled(syscall.SIGINT))
	if err := endless(ctx, ctx.Err()); err != exitStatus(130) {
		t.Errorf("after a signal: %v", err)
	}
	if err := endless(ctx, nil); err != nil {
		t.Errorf("what ended well: %v", err)
	}
}
