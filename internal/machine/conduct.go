package machine

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
)

// MainSpec says what a VM's main command is made of.
type MainSpec struct {
	// Image has the image's own command run, of which Args take the place but for its entry point.
	// Without it Args are the command.
	Image bool
	Args  []string
}

// ComposeCommand is an image's own command: its entry point with what is given, or else with what the
// image gives it. It is empty if there is none.
func ComposeCommand(entrypoint, cmd, given []string) []string {
	if len(given) > 0 {
		cmd = given
	}
	command := make([]string, 0, len(entrypoint)+len(cmd))
	return append(append(command, entrypoint...), cmd...)
}

// checkCommand refuses what cannot be run.
func checkCommand(command []string) error {
	if len(command) == 0 {
		return nil
	}
	if command[0] == "" {
		return fmt.Errorf("%w: the main command's program has no name", ErrInvalidOption)
	}
	for _, arg := range command {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("%w: %q cannot be an argument of the main command", ErrInvalidOption, arg)
		}
	}
	return nil
}

// conduct is what a VM's record says of its life, of what was asked for and what the image says.
func (s Spec) conduct(img *image.Image) (store.Conduct, error) {
	c := store.Conduct{Restart: string(s.Restart), User: s.User, WorkingDir: s.WorkingDir, StopSignal: img.Config.StopSignal}
	if s.Restart == RestartNo {
		c.Restart = ""
	}
	if s.Main != nil {
		c.Main = slices.Clone(s.Main.Args)
		if s.Main.Image {
			c.Main = ComposeCommand(img.Config.Entrypoint, img.Config.Cmd, s.Main.Args)
		}
	}
	if s.StopSignal != "" {
		c.StopSignal = s.StopSignal
	}
	// What an image says that makes no sense is passed over: it works without.
	sig, err := ParseSignal(c.StopSignal)
	if c.StopSignal = ""; err == nil && sig != defaultStopSignal {
		c.StopSignal = signalName(sig)
	}
	if len(img.Config.Labels)+len(s.Labels) > 0 {
		c.Labels = make(map[string]string)
		maps.Copy(c.Labels, img.Config.Labels)
		maps.Copy(c.Labels, s.Labels)
	}
	return c, checkCommand(c.Main)
}

// checkConduct refuses what cannot be asked for.
func (s Spec) checkConduct() error {
	if _, _, err := s.Restart.parse(); err != nil {
		return err
	}
	if s.StopSignal != "" {
		if _, err := ParseSignal(s.StopSignal); err != nil {
			return err
		}
	}
	if strings.ContainsRune(s.User, 0) {
		return fmt.Errorf("%w: %q is no user", ErrInvalidOption, s.User)
	}
	if dir := s.WorkingDir; dir != "" && (!path.IsAbs(dir) || strings.ContainsRune(dir, 0)) {
		return fmt.Errorf("%w: the working directory must be a path from the guest's root, not %q", ErrInvalidOption, dir)
	}
	for key := range s.Labels {
		if key == "" {
			return fmt.Errorf("%w: a label has no name", ErrInvalidOption)
		}
	}
	for _, req := range s.Publish {
		if err := req.Validate(); err != nil {
			return err
		}
	}
	return nil
}
