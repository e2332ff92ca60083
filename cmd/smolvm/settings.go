package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// setting is something that can be given by a flag, by the environment and in the
// configuration file. Of several, the first in this order counts.
type setting struct {
	key      string // in the file; see flag and variable for the others
	standard any    // without being given: a string, an int or a bool
	choices  []string
	help     string
}

// settings are all of them.
func settings() []setting {
	return []setting{
		{"data_dir", "", nil, "`directory` for images and VMs (default: /var/lib/smolvm for root, ~/.local/share/smolvm for others)"},
		{"image", "debian", nil, "image of the VM"},
		{"pull", "missing", []string{"missing", "always", "never"}, "when a registry is asked for the image: missing (if it is not here), always or never"},
		{"insecure", false, nil, "allow registries without TLS, or with a certificate that cannot be verified"},
		{"memory", 512, nil, "memory in `MiB`"},
		{"cpus", 1, nil, "number of processors"},
		{"disk", 0, nil, "size of the disk in `GiB` (default: the image's)"},
		{"network", "auto", []string{"auto", "nat", "user", "none"}, "how the VM reaches the network: auto, nat, user or none"},
		{"volumes_read_only", false, nil, "share folders read-only unless :rw says otherwise"},
		{"accel", "", []string{"kvm", "tcg"}, "force an accelerator: kvm or tcg"},
		{"cold", false, nil, "boot the guest, do not go on from a template"},
		{"transport", "", []string{"nftables", "ssh_tunnel"}, "force a transport for ports: nftables or ssh_tunnel"},
		{"color", "auto", []string{"auto", "always", "never"}, "colours: auto (on a terminal, without NO_COLOR), always or never"},
		{"verbose", false, nil, "log what is done"},
	}
}

// flag is the name of the setting's flag.
func (s setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }

// variable is the environment variable of the setting.
func (s setting) variable() string { return "SMOLVM_" + strings.ToUpper(s.key) }

// parse reads a value from text.
func (s setting) parse(text string) (any, error) {
	var value any = text
	var err error
	switch s.standard.(type) {
	case int:
		value, err = strconv.Atoi(text)
	case bool:
		value, err = strconv.ParseBool(text)
	}
	if err != nil {
		return nil, fmt.Errorf("%s must be %s, not %q", s.key, s.kind(), text)
	}
	return value, s.check(value)
}

// check tells whether a value is of the right type and one of the choices.
func (s setting) check(value any) error {
	if fmt.Sprintf("%T", value) != fmt.Sprintf("%T", s.standard) {
		return fmt.Errorf("%s must be %s", s.key, s.kind())
	}
	if n, ok := value.(int); ok {
		// A standard of 0 stands for what cannot be told beforehand.
		if least := min(1, s.standard.(int)); n < least {
			return fmt.Errorf("%s must be at least %d, not %d", s.key, least, n)
		}
	}
	if text, ok := value.(string); ok && text != "" && s.choices != nil && !slices.Contains(s.choices, text) {
		return fmt.Errorf("%s must be %s, not %q", s.key, either(s.choices), text)
	}
	return nil
}

func (s setting) kind() string {
	switch s.standard.(type) {
	case int:
		return "a whole number"
	case bool:
		return "true or false"
	}
	return "a text"
}

// either lists choices for people.
func either(choices []string) string {
	last := len(choices) - 1
	return strings.Join(choices[:last], ", ") + " or " + choices[last]
}

// settingVar puts the flag of a setting among those of a verb. The target is a *string, *int
// or *bool, as the setting is.
func settingVar(cmd *cobra.Command, flags *pflag.FlagSet, to any, key string) {
	all := settings()
	s := all[slices.IndexFunc(all, func(s setting) bool { return s.key == key })]
	switch to := to.(type) {
	case *string:
		flags.StringVar(to, s.flag(), s.standard.(string), s.help)
	case *int:
		flags.IntVar(to, s.flag(), s.standard.(int), s.help)
	case *bool:
		flags.BoolVar(to, s.flag(), s.standard.(bool), s.help)
	}
	if s.choices != nil {
		// It fails only for a flag that does not exist.
		_ = cmd.RegisterFlagCompletionFunc(s.flag(), cobra.FixedCompletions(s.choices, cobra.ShellCompDirectiveNoFileComp))
	}
}

// given is a setting as it is in force.
type given struct {
	setting
	value  any
	source string // "default", or the flag, the variable or the file
}

// inForce tells what of a setting counts for a verb.
func (s setting) inForce(cmd *cobra.Command, file configFile) (given, error) {
	if flag := cmd.Flags().Lookup(s.flag()); flag != nil && flag.Changed {
		value, err := s.parse(flag.Value.String())
		if err != nil {
			return given{}, misuse(cmd, "--%w", err)
		}
		return given{s, value, "--" + s.flag()}, nil
	}
	if text := os.Getenv(s.variable()); text != "" {
		value, err := s.parse(text)
		if err != nil {
			return given{}, fmt.Errorf("environment variable %s: %w", s.variable(), err)
		}
		return given{s, value, s.variable()}, nil
	}
	if value, ok := file.values[s.key]; ok {
		return given{s, value, file.path}, nil
	}
	return given{s, s.standard, "default"}, nil
}

// settle gives the flags of a verb that were not given the values that the environment and
// the file have for them.
func (g *globals) settle(cmd *cobra.Command) error {
	file, err := readConfigFile()
	if err != nil {
		return err
	}
	for _, s := range settings() {
		flag := cmd.Flags().Lookup(s.flag())
		if flag == nil {
			continue
		}
		now, err := s.inForce(cmd, file)
		if err != nil {
			return err
		}
		if now.source == "default" || flag.Changed {
			continue // the verb's own default may be another
		}
		if err := flag.Value.Set(fmt.Sprint(now.value)); err != nil {
			return fmt.Errorf("%s: %w", now.source, err)
		}
	}
	if flag := cmd.Flags().Lookup("json"); flag != nil {
		g.json = flag.Value.String() == "true"
	}
	return nil
}
