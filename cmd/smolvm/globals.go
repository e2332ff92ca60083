package main

import (
	"log/slog"
	"os"

	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/smolvm/smolvm"
)

// globals are the flags that every verb has.
type globals struct {
	dataDir string
	verbose bool
}

func (g *globals) register(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&g.dataDir, "data-dir", "", "directory for images and VMs (default $SMOLVM_DATA_DIR, else "+
		"/var/lib/smolvm for root, ~/.local/share/smolvm for others)")
	flags.BoolVarP(&g.verbose, "verbose", "v", false, "log what is done")
}

// options are the library's options that the flags stand for. The function is to
// be called once the work that may report progress is over.
func (g *globals) options() ([]smolvm.Option, func()) {
	level := slog.LevelWarn
	if g.verbose {
		level = slog.LevelDebug
	}
	terminal := term.IsTerminal(int(os.Stderr.Fd()))
	bar := &progressLine{out: os.Stderr, enabled: terminal && !g.verbose}
	log := slog.New(tint.NewTextHandler(bar.writer(), &tint.Options{
		Level:   level,
		NoColor: !terminal || os.Getenv("NO_COLOR") != "",
	}))
	opts := []smolvm.Option{smolvm.Logger(log), smolvm.OnProgress(bar.show)}
	if g.dataDir != "" {
		opts = append(opts, smolvm.DataDir(g.dataDir))
	}
	return opts, bar.clear
}
