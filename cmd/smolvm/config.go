package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// shownSetting is a setting in the output of config --json. Its field names are a contract.
type shownSetting struct {
	Key      string `json:"key"`
	Value    any    `json:"value"`
	Source   string `json:"source"` // "default", a flag, a variable or the file's path
	Flag     string `json:"flag"`
	Variable string `json:"variable"`
}

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the settings in force, and where each comes from",
		Long: `Show the settings in force, and where each comes from.

A flag counts before its environment variable, that before the configuration
file, and that before the built-in default. The file is $SMOLVM_CONFIG, else
/etc/smolvm/config.toml for root, and for others ~/.config/smolvm/config.toml. It
is TOML, with the keys that this shows:

  memory = 1024
  network = "none"`,
		Example: `  smolvm config
  SMOLVM_MEMORY=2048 smolvm config --json
  $EDITOR "$(smolvm config path)"`,
		Args: checkVerb,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		file, err := readConfigFile()
		if err != nil {
			return err
		}
		var shown []shownSetting
		for _, s := range settings() {
			now, err := s.inForce(cmd, file)
			if err != nil {
				return err
			}
			if s.key == "data_dir" && now.value == "" {
				if now.value, err = smolvm.DefaultDataDir(); err != nil {
					return err
				}
			}
			shown = append(shown, shownSetting{s.key, now.value, now.source, "--" + s.flag(), s.variable()})
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), shown)
		}
		t := newTable(cmd.OutOrStdout(), "SETTING", "VALUE", "FROM")
		for _, s := range shown {
			value := fmt.Sprint(s.Value)
			if value == "" {
				value = "-"
			}
			t.row(s.Key, value, s.Source)
		}
		return t.flush()
	}
	cmd.AddCommand(newConfigPathCommand())
	return cmd
}

func newConfigPathCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "path",
		Short:   "Print where the configuration file is, or would be",
		Example: "  smolvm config path",
		Args:    argsOfUse,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path, err := configPath()
		if err != nil {
			return err
		}
		if !*asJSON {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), path)
			return err
		}
		_, err = os.Stat(path)
		return printJSON(cmd.OutOrStdout(), map[string]any{"path": path, "exists": !errors.Is(err, fs.ErrNotExist)})
	}
	return cmd
}
