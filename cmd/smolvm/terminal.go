package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/smolvm/smolvm"
)

// errNoTerminal says that a command was to have a terminal, and there is none to give it.
var errNoTerminal = errors.New("cannot give the command a terminal: standard input is no terminal; leave out -t, and use -i to pass on what is piped in")

// runInTerminal runs a command that was not started yet in a terminal of its own, and lends it
// this program's: all that is typed goes to the guest, Ctrl-C too, until the command ends, or
// ctx does. It returns what the command's Wait does. This program's standard input must be a
// terminal, and is as before when runInTerminal returns, or ctx ends.
func runInTerminal(ctx context.Context, cmd *smolvm.Cmd) error {
	if !isTerminal(os.Stdin) {
		return errNoTerminal
	}
	size := sizeOf(os.Stdin)
	cmd.Terminal = &smolvm.Terminal{Term: cmp.Or(os.Getenv("TERM"), "xterm"), Columns: size.columns, Rows: size.rows}
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	return lendTerminal(ctx, os.Stdin, size, cmd)
}

// terminalCommand is a command with a terminal of its own.
type terminalCommand interface {
	Start() error
	Wait() error
	Resize(columns, rows int) error
}

// lendTerminal runs a command that reads from tty and believes it to be of that size.
func lendTerminal(ctx context.Context, tty *os.File, size terminalSize, cmd terminalCommand) error {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	// Until the command runs, Ctrl-C still means this program.
	if err := cmd.Start(); err != nil {
		return err
	}
	state, err := term.MakeRaw(int(tty.Fd()))
	if err != nil {
		return fmt.Errorf("prepare terminal: %w", err)
	}
	restore := sync.OnceFunc(func() {
		// It fails only for a terminal that is gone.
		_ = term.Restore(int(tty.Fd()), state)
	})
	defer restore()
	// A second signal ends the program without asking: the first one is the last occasion.
	defer context.AfterFunc(ctx, restore)()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			// What changed while the command was started counts too.
			if now := sizeOf(tty); now != size {
				size = now
				_ = cmd.Resize(size.columns, size.rows) // a command that has ended has no size
			}
			select {
			case <-resized:
			case <-ended:
				return
			}
		}
	}()
	return cmd.Wait()
}

// terminalSize is how many characters a terminal shows.
type terminalSize struct{ columns, rows int }

// sizeOf returns the size of a terminal, or the usual one if it does not know its own, or is none.
func sizeOf(out any) terminalSize {
	if tty, ok := out.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(tty.Fd())); err == nil && columns > 0 && rows > 0 {
			return terminalSize{columns, rows}
		}
	}
	return terminalSize{80, 24}
}

// fit returns the beginning of a line that fits on the terminal. The last column stays free: a line
// that is full makes some terminals begin another.
func (s terminalSize) fit(line string) string { return cut(line, s.columns-1) }
