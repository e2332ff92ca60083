package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// pruneResult is the output of prune --json. Its field names are a contract.
type pruneResult struct {
	Removed []smolvm.Pruned `json:"removed"` // with --dry-run: what would be
	Bytes   int64           `json:"bytes"`   // of all of them
	DryRun  bool            `json:"dry_run"`
}

func newPruneCommand(g *globals) *cobra.Command {
	var dryRun, force, vms, images bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove VMs that do not run, and images that no VM is made on",
		Long: `Remove VMs that do not run, with their disks, and images that no VM is made on.

It shows what that is and how much, and asks. Where nobody can be asked, such as in
a script, it wants --force.`,
		Example: "  smolvm prune --dry-run\n  smolvm prune --images\n  smolvm prune --force --json | jq .bytes",
		Args:    argsOfUse,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&dryRun, "dry-run", "n", false, "only show what would be removed")
	flags.BoolVarP(&force, "force", "f", false, "do not ask")
	flags.BoolVar(&vms, "vms", false, "remove VMs only")
	flags.BoolVar(&images, "images", false, "remove images only")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		what := smolvm.PruneOptions{KeepImages: vms && !images, KeepVMs: images && !vms}
		opts, done := g.options()
		defer done()
		if dryRun || !force {
			ask := what
			ask.DryRun = true
			found, err := smolvm.Prune(ctx, ask, opts...)
			if err != nil {
				return err
			}
			if dryRun || len(found) == 0 {
				return reportPruned(cmd.OutOrStdout(), found, dryRun, *asJSON)
			}
			// The result comes later.
			if err := printPruned(os.Stderr, "would be removed", found); err != nil {
				return err
			}
			if !isTerminal(os.Stdin) {
				return misuse(cmd, "nobody can be asked: give --force to remove this, or --dry-run to only see it")
			}
			if yes, err := confirm(ctx, os.Stdin, os.Stderr, "Remove all of this?"); err != nil || !yes {
				return interrupted(ctx, errors.Join(err, errDeclined), "nothing was removed")
			}
		}
		removed, err := smolvm.Prune(ctx, what, opts...)
		err = interrupted(ctx, err, "what is listed was removed, the rest was not")
		if err != nil && len(removed) == 0 && !*asJSON {
			return err
		}
		return also(err, reportPruned(cmd.OutOrStdout(), removed, false, *asJSON))
	}
	return cmd
}

// errDeclined says that people did not want it.
var errDeclined = errors.New("nothing was removed")

func newPruneResult(pruned []smolvm.Pruned, dryRun bool) pruneResult {
	r := pruneResult{Removed: []smolvm.Pruned{}, DryRun: dryRun}
	for _, p := range pruned {
		r.Removed = append(r.Removed, p)
		r.Bytes += p.Bytes
	}
	return r
}

// reportPruned prints what came of it.
func reportPruned(out io.Writer, pruned []smolvm.Pruned, dryRun, asJSON bool) error {
	switch {
	case asJSON:
		return printJSON(out, newPruneResult(pruned, dryRun))
	case dryRun:
		return printPruned(out, "would be removed", pruned)
	}
	return printPruned(out, "removed", pruned)
}

// printPruned prints what is removed, and how much that is.
func printPruned(out io.Writer, how string, pruned []smolvm.Pruned) error {
	if len(pruned) == 0 {
		_, err := fmt.Fprintln(out, "There is nothing to remove.")
		return err
	}
	t := newTable(out, "KIND", "NAME", "SIZE")
	for _, p := range pruned {
		t.row(p.Kind, p.Name, size(p.Bytes))
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "In all %d, %s, %s.\n", len(pruned), size(newPruneResult(pruned, false).Bytes), how)
	return err
}

// confirm asks people a question. All but yes is no. It returns early if ctx ends.
func confirm(ctx context.Context, in io.Reader, out io.Writer, question string) (bool, error) {
	fmt.Fprintf(out, "%s [y/N] ", question)
	answers := make(chan string, 1)
	// Nobody waits for this one if ctx ends: a terminal may never be read to a line's end.
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n')
		answers <- line
	}()
	select {
	case answer := <-answers:
		answer = strings.ToLower(strings.TrimSpace(answer))
		return answer == "y" || answer == "yes", nil
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false, ctx.Err()
	}
}
