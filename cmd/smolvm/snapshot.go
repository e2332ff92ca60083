package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newSnapshotCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Keep copies of VMs, and go back to them",
		Long: `Keep copies of VMs, and go back to them: with their memory, so that what is made from
one goes on where the VM was, or of a VM that is stopped, its disk. Snapshots outlive
the VM.`,
		Args: checkVerb,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSnapshotCreateCommand(g), newSnapshotListCommand(g), newSnapshotRestoreCommand(g), newSnapshotRemoveCommand(g))
	return cmd
}

func newSnapshotCreateCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create VM [NAME]",
		Short: "Keep a copy of a VM as it is now",
		Long: `Keep a copy of a VM as it is now, and print the snapshot's name: by default the VM's
with the time. A VM that runs goes on after a moment.`,
		Example:           "  smolvm snapshot create web before-upgrade\n  smolvm snapshot create web",
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(1, nil),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		opts, done := g.options()
		defer done()
		vm, err := smolvm.Open(ctx, args[0], opts...)
		if err != nil {
			return err
		}
		g.progress().say("copying " + args[0])
		snapshot, err := vm.Snapshot(ctx, append(args, "")[1])
		err = errors.Join(err, vm.Close())
		done()
		switch {
		case err != nil:
			return interrupted(ctx, err, "no snapshot was made")
		case *asJSON:
			return printJSON(cmd.OutOrStdout(), snapshot)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), snapshot.Name)
		return err
	}
	return cmd
}

// snapshotJSON is a snapshot in the output, with what is wrong with it.
type snapshotJSON struct {
	smolvm.Snapshot
	Error string `json:"error,omitempty"`
}

func newSnapshotListCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List snapshots",
		Long: `List snapshots. Their size is what they take of the host's disk themselves, mostly
memory: the disk is shared with the VM's as far as both are the same.`,
		Example: "  smolvm snapshot ls\n  smolvm snapshot ls --json | jq -r '.[] | select(.vm == \"web\") | .name'",
		Args:    argsOfUse,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		opts, done := g.options()
		snapshots, err := smolvm.Snapshots(cmd.Context(), opts...)
		done()
		if err != nil {
			return err
		}
		if *asJSON {
			list := make([]snapshotJSON, len(snapshots))
			for i, s := range snapshots {
				list[i].Snapshot = s
				if s.Err != nil {
					list[i].Error = plain(s.Err.Error())
				}
			}
			return printJSON(cmd.OutOrStdout(), list)
		}
		return snapshotTable(newTable(cmd.OutOrStdout(), "NAME", "VM", "AGE", "SIZE", "MEMORY"), snapshots, time.Now()).flush()
	}
	return cmd
}

// snapshotTable fills a table with snapshots.
func snapshotTable(t *table, snapshots []smolvm.Snapshot, now time.Time) *table {
	for _, s := range snapshots {
		if s.Err != nil {
			t.row(s.Name, "damaged", s.Err.Error())
			continue
		}
		memory := "no"
		if s.Running {
			memory = "yes"
		}
		t.row(s.Name, s.VM, age(now.Sub(s.Created)), size(s.Size), memory)
	}
	return t
}

func newSnapshotRestoreCommand(g *globals) *cobra.Command {
	var (
		name  string
		force bool
	)
	cmd := &cobra.Command{
		Use:   "restore [flags] SNAPSHOT [VM]",
		Short: "Start a new VM from a snapshot, or put a VM back to it",
		Long: `Start a new VM from a snapshot, and print its name: it goes on from where the VM was
of which the snapshot was made, as a copy that smolvm fork makes.

With VM, that one is put back to the snapshot and started. What it has on its disk
now is lost. While it runs, that takes --force.`,
		Example: `  smolvm snapshot restore before-upgrade web --force
  smolvm snapshot restore before-upgrade --name web-old`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeSnapshots(1),
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the new VM (default: made up)")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "put back a VM that runs, too: it is stopped at once")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		ctx := cmd.Context()
		if name != "" && len(args) > 1 {
			return misuse(cmd, "give either --name, for a new VM, or VM")
		}
		opts, done := g.options()
		defer done()
		g.progress().say("restoring " + args[0])
		var vm *smolvm.VM
		if len(args) == 1 {
			vm, err = smolvm.Restore(ctx, args[0], append(opts, smolvm.Name(name), smolvm.Keep())...)
			err = interrupted(ctx, err, "no VM was made")
		} else {
			vm, err = putBack(ctx, args[0], args[1], force, opts)
		}
		done()
		if err != nil {
			return err
		}
		return errors.Join(printNames(cmd, []batched{{Name: vm.Name()}}, *asJSON), vm.Close())
	}
	return cmd
}

// putBack puts a VM back to a snapshot and starts it.
func putBack(ctx context.Context, snapshot, name string, force bool, opts []smolvm.Option) (*smolvm.VM, error) {
	vm, err := smolvm.Open(ctx, name, opts...)
	if err != nil {
		return nil, err
	}
	if force {
		err = vm.Kill(ctx)
	}
	if err == nil {
		err = vm.Revert(ctx, snapshot)
	}
	if err == nil {
		err = vm.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(&vmError{name, interrupted(ctx, err, "VM %s is %s", name, statusNow(ctx, name, opts))}, vm.Close())
	}
	return vm, nil
}

func newSnapshotRemoveCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rm SNAPSHOT...",
		Short:             "Remove snapshots",
		Long:              "Remove snapshots. VMs that were made from them, or put back to them, stay.",
		Example:           "  smolvm snapshot rm before-upgrade\n  smolvm snapshot rm --all",
		ValidArgsFunction: g.completeSnapshots(0),
	}
	all := cmd.Flags().BoolP("all", "a", false, "remove all snapshots")
	cmd.Args = namesOrAll(all)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx := cmd.Context()
		opts, done := g.options()
		defer done()
		if *all {
			snapshots, err := smolvm.Snapshots(ctx, opts...)
			if err != nil {
				return err
			}
			for _, s := range snapshots {
				names = append(names, s.Name)
			}
		}
		var errs []error
		for _, name := range distinct(names) {
			err := smolvm.RemoveSnapshot(ctx, name, opts...)
			if err == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	return cmd
}

// completeSnapshots completes the names of snapshots, at most limit; 0 is any number. What comes
// after them is completed with VMs.
func (g *globals) completeSnapshots(limit int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if limit > 0 && len(args) >= limit {
			return g.completeVMs(limit+1, nil)(cmd, args, begun)
		}
		opts, _ := g.options()
		snapshots, err := smolvm.Snapshots(cmd.Context(), opts...)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, s := range snapshots {
			if !slices.Contains(args, s.Name) {
				names = append(names, cobra.CompletionWithDesc(s.Name, "of "+s.VM))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
