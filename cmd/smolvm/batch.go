package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// batch is a verb that does one thing with several VMs at once.
type batch struct {
	use     string // "start VM..."
	short   string
	long    string
	example string
	doing   string // what goes on meanwhile, for people: "starting"
	all     string // what --all takes: "all VMs that do not run"
	// concerns are the VMs that --all takes and that completion offers.
	concerns func(smolvm.Info) bool
	starts   bool // it has the flags of verbs that start VMs
	// do does it with one VM. An error that ctx caused is completed by the VM's status.
	do func(ctx context.Context, vm *smolvm.VM) error
	// told, if it is set, completes what is told of a VM with which it was done. The text is a line's;
	// by default that is the name.
	told func(b *batched) (text string)
}

// batched is a VM in the output of a batch with --json. Its field names are a contract.
type batched struct {
	Name  string `json:"name"`
	Error string `json:"error,omitempty"`
	// ExitCode is that of the main process, in the output of wait.
	ExitCode *int `json:"exit_code,omitempty"`
}

// line is what is told of a VM with which it was done.
func (b batch) line(done *batched) string {
	if b.told == nil {
		return done.Name
	}
	return b.told(done)
}

// manyAtOnce bounds how many VMs are dealt with at a time.
const manyAtOnce = 16

func (b batch) command(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: b.use, Short: b.short, Long: b.long, Example: b.example}
	all := cmd.Flags().BoolP("all", "a", false, b.all)
	asJSON := jsonFlag(cmd)
	var start startFlags
	if b.starts {
		start.register(cmd)
		start.registerAgain(cmd)
	}
	cmd.ValidArgsFunction = g.completeVMs(0, b.concerns)
	cmd.Args = namesOrAll(all)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx := cmd.Context()
		opts, done := g.options()
		defer done()
		opts = append(opts, start.options()...)
		var err error
		if *all {
			if names, err = b.concerned(ctx, opts); err != nil {
				return err
			}
		}
		names = distinct(names)
		results := b.run(ctx, names, opts, g.progress(), func(name string) {
			if !*asJSON && err == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), b.line(&batched{Name: name}))
			}
		})
		if *asJSON {
			list := make([]batched, len(names))
			for i, name := range names {
				list[i].Name = name
				if results[i] != nil {
					list[i].Error = plain(results[i].Error())
				} else {
					b.line(&list[i])
				}
			}
			err = printJSON(cmd.OutOrStdout(), list)
		}
		return also(together(results), err)
	}
	return cmd
}

// namesOrAll accepts names, as the verb's Use announces, or none with --all.
func namesOrAll(all *bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, names []string) error {
		switch {
		case *all && len(names) > 0:
			return errors.New("give either names or --all")
		case *all:
			return nil
		}
		return argsOfUse(cmd, names)
	}
}

// distinct returns the names without repetitions, in their order.
func distinct(names []string) []string {
	var once []string
	for _, name := range names {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once
}

// concerned are the names of all VMs that the verb concerns.
func (b batch) concerned(ctx context.Context, opts []smolvm.Option) ([]string, error) {
	infos, err := smolvm.List(ctx, opts...)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, vm := range infos {
		if b.concerns(vm) {
			names = append(names, vm.Name)
		}
	}
	return names, nil
}

// run does it with all VMs and returns, for each, why it failed or nil. Those that are done are
// told at once, one after the other.
func (b batch) run(ctx context.Context, names []string, opts []smolvm.Option, line *progressLine, told func(name string)) []error {
	results := make([]error, len(names))
	var mu sync.Mutex
	waiting := slices.Clone(names)
	show := func() {
		if len(waiting) > 0 {
			line.say(fmt.Sprintf("%s %s (%d of %d done)", b.doing, strings.Join(waiting, ", "), len(names)-len(waiting), len(names)))
		}
	}
	show()
	free := make(chan struct{}, manyAtOnce)
	var working sync.WaitGroup
	for i, name := range names {
		working.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			results[i] = b.one(ctx, name, opts)
			mu.Lock()
			defer mu.Unlock()
			waiting = slices.DeleteFunc(waiting, func(other string) bool { return other == name })
			line.clear()
			if results[i] == nil {
				told(name)
			}
			show()
		})
	}
	working.Wait()
	line.clear()
	return results
}

// one does it with one VM.
func (b batch) one(ctx context.Context, name string, opts []smolvm.Option) error {
	vm, err := smolvm.Open(ctx, name, opts...)
	if err == nil {
		err = errors.Join(b.do(ctx, vm), vm.Close())
	}
	if err == nil {
		return nil
	}
	return &vmError{name, interrupted(ctx, err, "VM %s is %s", name, statusNow(ctx, name, opts))}
}

// statusTimeout bounds the look at what a signal left.
const statusTimeout = 5 * time.Second

// statusNow is the status of a VM, for people, even though ctx has ended.
func statusNow(ctx context.Context, name string, opts []smolvm.Option) string {
	if ctx.Err() == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
	defer cancel()
	vm, err := smolvm.Open(ctx, name, opts...)
	if errors.Is(err, smolvm.ErrNotFound) {
		return string(smolvm.StatusDeleted)
	}
	if err != nil {
		return "in an unknown state: " + err.Error()
	}
	status, err := vm.Status(ctx)
	if err = errors.Join(err, vm.Close()); err != nil {
		return "in an unknown state: " + err.Error()
	}
	return string(status)
}
