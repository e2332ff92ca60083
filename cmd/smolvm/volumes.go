package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm"
)

// parseVolumes reads folders to be shared as people write them: HOST:GUEST, and behind another
// colon ro or rw. Those that do not say that are read-only if asked for.
func parseVolumes(volumes []string, readOnly bool) ([]smolvm.SharedFolder, error) {
	folders := make([]smolvm.SharedFolder, len(volumes))
	for i, volume := range volumes {
		parts := strings.Split(volume, ":")
		if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
			return nil, fmt.Errorf("volume %q is not HOST:GUEST or HOST:GUEST:ro, as in: -v .:/work", volume)
		}
		host, err := hostFolder(parts[0])
		if err != nil {
			return nil, err
		}
		f := smolvm.SharedFolder{Host: host, Guest: parts[1], ReadOnly: readOnly}
		if len(parts) == 3 {
			switch parts[2] {
			case "ro":
				f.ReadOnly = true
			case "rw":
				f.ReadOnly = false
			default:
				return nil, fmt.Errorf("volume %q ends with %q: only ro and rw can be there", volume, parts[2])
			}
		}
		folders[i] = f
	}
	return folders, nil
}

// hostFolder is the path that a volume's HOST means.
func hostFolder(host string) (string, error) {
	if rest, ok := strings.CutPrefix(host, "~/"); ok { // a shell leaves it in --volume=~/data
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find home directory: %w", err)
		}
		return filepath.Join(home, rest), nil
	}
	if host != "." && host != ".." && !strings.Contains(host, "/") {
		return "", fmt.Errorf("volume %q has only a name, and there are no named volumes: for a folder write ./%s", host, host)
	}
	return host, nil
}
