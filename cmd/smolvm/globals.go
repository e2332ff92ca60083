package main

import (
	"log/slog"
	"os"

	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// globals are the flags that every verb has.
type globals struct {
	dataDir string
	verbose bool
	color   string // auto, always or never
	json    bool   // the verb prints for programs

	line *progressLine // see progress
}

func (g *globals) register(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	settingVar(cmd, flags, &g.dataDir, "data_dir")
	settingVar(cmd, flags, &g.color, "color")
	settingVar(cmd, flags, &g.verbose, "verbose")
}

// colored tells whether what is written to a stream is to have colours.
func (g *globals) colored(stream any) bool {
	switch g.color {
	case "always":
		return true
	case "never":
		return false
	}
	return isTerminal(stream) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// progress is the line that shows how the work comes on.
func (g *globals) progress() *progressLine {
	if g.line == nil {
		g.line = &progressLine{out: os.Stderr, enabled: isTerminal(os.Stderr) && !g.verbose && !g.json}
	}
	return g.line
}

// options are the library's options that the flags stand for: VMs are run in the background,
// and outlive this program. The function is to be called once the work that may report progress
// is over.
func (g *globals) options() ([]smolvm.Option, func()) {
	opts, done := g.foreground()
	return append(opts, smolvm.Background()), done
}

// foreground is options for VMs that this program runs itself.
func (g *globals) foreground() ([]smolvm.Option, func()) {
	level := slog.LevelWarn
	if g.verbose {
		level = slog.LevelDebug
	}
	bar := g.progress()
	log := slog.New(tint.NewTextHandler(bar.writer(), &tint.Options{Level: level, NoColor: !g.colored(os.Stderr)}))
	opts := []smolvm.Option{smolvm.Logger(log), smolvm.OnProgress(bar.show), smolvm.Version(version)}
	if g.dataDir != "" {
		opts = append(opts, smolvm.DataDir(g.dataDir))
	}
	if program, err := os.Executable(); err == nil {
		opts = append(opts, smolvm.OwnerProgram(program))
	}
	return opts, bar.clear
}
