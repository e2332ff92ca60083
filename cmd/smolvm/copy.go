package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newCopyCommand(g *globals) *cobra.Command {
	var c copying
	var from, to place
	cmd := &cobra.Command{
		Use:   "cp [flags] SRC DST",
		Short: "Copy files and directories into a VM, out of it, or between VMs",
		Long: `Copy a file, or a directory with all below it, into a VM, out of it, or from one VM
to another. VM:PATH is in a VM; a relative one counts from /root. What begins with
/ or . is always a path of this host. A lone - is standard input or output: the
contents of one file, which a terminal shows without control characters.

If DST is a directory the copy goes into it under its name; SRC/. copies what the
directory SRC has in it. If there is no DST the copy becomes it. Modes, times
and symbolic links are kept; the copy belongs to the guest's root, or on this
host to you.

Each file is replaced when all of it is there, so Ctrl-C leaves no half-written ones.`,
		Example: `  smolvm cp app.py web:
  smolvm cp ./site/. web:/srv/www
  smolvm cp web:/var/log/nginx ./logs
  pg_dump shop | smolvm cp - db:/root/shop.sql
  smolvm cp web:/etc/passwd - | wc -l`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := argsOfUse(cmd, args); err != nil {
				return err
			}
			from, to = parsePlace(args[0]), parsePlace(args[1])
			return checkPlaces(from, to)
		},
		ValidArgsFunction: g.completePlaces,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.globals, c.in, c.out = g, os.Stdin, cmd.OutOrStdout()
			return c.copy(cmd.Context(), from, to)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&c.followLink, "follow-link", "L", false, "if SRC is a symbolic link, copy what it leads to")
	flags.BoolVarP(&c.quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// place is where something is copied from, or to.
type place struct {
	vm   string // empty: this host
	path string
	// stream: it is standard input or output.
	stream bool
}

func (p place) String() string {
	switch {
	case p.vm != "":
		return p.vm + ":" + p.path
	case p.stream:
		return "-"
	}
	return p.path
}

// parsePlace reads a place as people write it. What can be no VM's name before the colon is part
// of a path.
func parsePlace(text string) place {
	if text == "-" {
		return place{stream: true}
	}
	vm, inVM, ok := strings.Cut(text, ":")
	if !ok || vm == "" || strings.HasPrefix(text, ".") || strings.Contains(vm, "/") {
		return place{path: text}
	}
	return place{vm: vm, path: inVM}
}

// checkPlaces refuses what cannot be copied.
func checkPlaces(from, to place) error {
	switch {
	case from.vm == "" && to.vm == "":
		return errors.New("neither side is in a VM: write VM:PATH, as in: smolvm cp app.py web:/root")
	case from.stream && (to.path == "" || strings.HasSuffix(to.path, "/")):
		return fmt.Errorf("a name is missing for what comes from standard input, as in: %s:/root/FILE", to.vm)
	case to.stream && from.path == "":
		return fmt.Errorf("a file is missing, as in: %s:/etc/os-release", from.vm)
	case from.vm == "" && !from.stream && from.path == "", to.vm == "" && !to.stream && to.path == "":
		return errors.New("a path is empty")
	}
	return nil
}

// copying is how something is copied.
type copying struct {
	*globals
	followLink, quiet bool

	in  *os.File
	out io.Writer
}

func (c *copying) copy(ctx context.Context, from, to place) error {
	if from.vm != "" && to.vm != "" {
		return c.between(ctx, from, to)
	}
	bar := c.bar(from, to)
	defer bar.clear()
	name := from.vm
	if name == "" {
		name = to.vm
	}
	err := c.with(ctx, name, func(vm *smolvm.VM) error {
		switch {
		case from.stream:
			in := &countingReader{from: c.in, report: bar.report, total: sizeOfFile(c.in)}
			return vm.WriteFileFrom(ctx, to.path, in, 0o644)
		case to.stream:
			out := &countingWriter{to: forPeople(c.out), report: bar.report}
			return vm.ReadFileTo(ctx, from.path, out)
		case from.vm == "":
			return vm.CopyTo(ctx, from.path, home(to.path), c.options(bar)...)
		}
		return vm.CopyFrom(ctx, home(from.path), to.path, c.options(bar)...)
	})
	bar.clear()
	return c.failed(ctx, name, to, err)
}

// between copies from one VM to another, through a directory of this host.
func (c *copying) between(ctx context.Context, from, to place) (err error) {
	dir, err := os.MkdirTemp("", "smolvm-cp-")
	if err != nil {
		return fmt.Errorf("make room for the copy: %w", err)
	}
	defer func() {
		if removeErr := os.RemoveAll(dir); removeErr != nil && err == nil {
			err = fmt.Errorf("remove the copy between: %w", removeErr)
		}
	}()
	between, name := place{path: filepath.Join(dir, "copy")}, path.Base(from.path)
	// What has no name of its own is copied as what it has in it.
	whole := name != "." && name != ".." && name != "/" && !strings.HasSuffix(from.path, "/.")
	if whole {
		between.path = filepath.Join(dir, name)
	}
	if err := c.copy(ctx, from, between); err != nil {
		if _, ok := errors.AsType[*interruption](err); ok {
			return &interruption{fmt.Sprintf("nothing was copied to %s", to)}
		}
		return err
	}
	if !whole {
		between.path += "/."
	}
	return c.copy(ctx, between, to)
}

// failed says of which VM an error is, and what there is after an interruption.
func (c *copying) failed(ctx context.Context, vm string, to place, err error) error {
	if err == nil {
		return nil
	}
	if to.stream {
		return &vmError{vm, interrupted(ctx, err, "what was written is not all of the file")}
	}
	return &vmError{vm, interrupted(ctx, err, "every file in %s is whole, but some may not be there", to)}
}

func (c *copying) options(bar *byteBar) []smolvm.CopyOption {
	opts := []smolvm.CopyOption{smolvm.OnBytes(bar.report)}
	if c.followLink {
		opts = append(opts, smolvm.FollowLink())
	}
	return opts
}

// bar shows how far the copying has come.
func (c *copying) bar(from, to place) *byteBar {
	line := c.progress()
	if c.quiet || to.stream && isTerminal(c.out) {
		line = &progressLine{}
	}
	return newByteBar(line, plain(fmt.Sprintf("%s -> %s", from, to)))
}

// home is a path in a guest that may be empty, for root's home.
func home(path string) string { return cmp.Or(path, "/root") }

// sizeOfFile is how much there is to read, or 0 if that is not known.
func sizeOfFile(file *os.File) int64 {
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
		return info.Size()
	}
	return 0
}

// countingReader reports what is read.
type countingReader struct {
	from        io.Reader
	report      func(done, total int64)
	done, total int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	r.done += int64(n)
	r.report(r.done, r.total)
	return n, err
}

// countingWriter reports what is written.
type countingWriter struct {
	to     io.Writer
	report func(done, total int64)
	done   int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.done += int64(n)
	w.report(w.done, 0)
	return n, err
}

// completePlaces completes VMs that run, with the colon; for the rest there are the host's files.
func (g *globals) completePlaces(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) >= 2 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	infos, err := g.list(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var vms []cobra.Completion
	for _, vm := range infos {
		if at := vm.Name + ":"; isRunning(vm) && strings.HasPrefix(at, toComplete) {
			vms = append(vms, cobra.CompletionWithDesc(at, "a path in this VM"))
		}
	}
	if len(vms) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return vms, cobra.ShellCompDirectiveNoSpace
}
