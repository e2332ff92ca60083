package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// failures are what went wrong with each of several things that were done at once.
type failures []error

func (f failures) Error() string   { return errors.Join(f...).Error() }
func (f failures) Unwrap() []error { return f }

// also adds an error that is told in a line of its own. Either may be nil.
func also(err, other error) error {
	switch {
	case other == nil:
		return err
	case err == nil:
		return other
	}
	if several, ok := errors.AsType[failures](err); ok {
		return append(several, other)
	}
	return failures{err, other}
}

// vmError is an error that is about one of several VMs.
type vmError struct {
	vm  string
	err error
}

func (e *vmError) Error() string {
	text := e.err.Error()
	if says, err := regexp.MatchString(`(VM |"|/)`+regexp.QuoteMeta(e.vm)+`([^a-z0-9-]|$)`, text); err == nil && says {
		return text // it says so itself
	}
	return fmt.Sprintf("VM %s: %s", e.vm, text)
}

func (e *vmError) Unwrap() error { return e.err }

// interruption is the error of work that a signal has ended. Its message is the state in which
// that left things.
type interruption struct{ state string }

func (e *interruption) Error() string { return "interrupted: " + e.state }

// interrupted tells the state that the end of ctx left, if it was that which let the work fail.
// Other errors it returns as they are.
func interrupted(ctx context.Context, err error, format string, args ...any) error {
	if err == nil || ctx.Err() == nil || !errors.Is(err, context.Canceled) {
		return err
	}
	return &interruption{fmt.Sprintf(format, args...)}
}

// complaint is what people are told of an error: in one line what, why, and what to do.
func (g *globals) complaint(cmd *cobra.Command, err error) string {
	vm := subject(cmd)
	if about, ok := errors.AsType[*vmError](err); ok {
		vm = about.vm
	}
	text := err.Error()
	if stopped, ok := errors.AsType[*smolvm.NotRunningError](err); ok && vm != "" {
		text = strings.Replace(stopped.Error(), "VM is", "VM "+vm+" is", 1)
	}
	todo := advice(err, vm)
	if errors.Is(err, smolvm.ErrNotFound) {
		todo = g.similarVM(cmd, text)
	}
	if _, ok := errors.AsType[*interruption](err); !ok && errors.Is(err, context.Canceled) {
		text, todo = "interrupted", ""
	}
	if todo != "" {
		text += "; " + todo
	}
	return plain(text)
}

// subject is the VM that a verb is about, if that is its first argument.
func subject(cmd *cobra.Command) string {
	for _, word := range strings.Fields(cmd.Use)[1:] {
		if word == "VM" && cmd.Flags().NArg() > 0 {
			return cmd.Flags().Arg(0)
		}
		if !strings.HasPrefix(word, "[") {
			break
		}
	}
	return ""
}

// advice is what to do about an error, or "". The VM that it is about may not be known.
func advice(err error, vm string) string {
	if vm == "" {
		vm = "VM"
	}
	if stopped, ok := errors.AsType[*smolvm.NotRunningError](err); ok {
		switch stopped.Status {
		case smolvm.StatusPaused, smolvm.StatusSuspended:
			return "let it go on with: smolvm resume " + vm
		case smolvm.StatusStarting, smolvm.StatusDeleted:
			return ""
		}
		return "start it with: smolvm start " + vm
	}
	for _, known := range []struct {
		kind error
		todo string
	}{
		{smolvm.ErrDamaged, "all that can be done is to remove it with: smolvm rm --force " + vm},
		{smolvm.ErrExists, "choose another name, or see what there is with: smolvm ls"},
		{smolvm.ErrSnapshotExists, "choose another name, or see what there is with: smolvm snapshot ls"},
		{smolvm.ErrSnapshotNotFound, "see what there is with: smolvm snapshot ls"},
		{smolvm.ErrRunning, "as in: smolvm stop " + vm},
		{smolvm.ErrInUse, "end that process, or do it from there"},
		{smolvm.ErrImageNotFound, "see what there is with: smolvm images"},
		{smolvm.ErrImageShared, "remove it there, as root: smolvm --data-dir /var/lib/smolvm rmi IMAGE"},
		{smolvm.ErrPortInUse, "choose another host port, or leave the choice to smolvm"},
		{smolvm.ErrTransport, "leave the choice to smolvm, or see what works with: smolvm doctor"},
		{smolvm.ErrAccelerator, "see what works with: smolvm doctor"},
		{syscall.ENOSPC, "see what can be removed with: smolvm prune --dry-run"},
		{syscall.EDQUOT, "see what can be removed with: smolvm prune --dry-run"},
	} {
		if errors.Is(err, known.kind) {
			return known.todo
		}
	}
	return ""
}

// listTimeout bounds the search for a similar name: the complaint itself is ready.
const listTimeout = 2 * time.Second

// similarVM is the advice about a VM that was not found: the message quotes its name.
func (g *globals) similarVM(cmd *cobra.Command, message string) string {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	opts, _ := g.options()
	infos, err := smolvm.List(ctx, opts...)
	if err != nil {
		return ""
	}
	if len(infos) == 0 {
		return "there are none; make one with: smolvm create"
	}
	var names []string
	for _, vm := range infos {
		names = append(names, vm.Name)
	}
	for _, arg := range cmd.Flags().Args() {
		name, _, _ := strings.Cut(arg, ":") // as cp has it
		if strings.Contains(message, strconv.Quote(name)) && !slices.Contains(names, name) {
			if similar := closest(name, names); similar != "" {
				return "did you mean " + similar + "?"
			}
		}
	}
	return "see what there is with: smolvm ls"
}
