package guest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// mergeEnv joins environments. Of a name that is set more than once the last
// value counts. Entries without a name are dropped.
func mergeEnv(layers ...[]string) []string {
	index := make(map[string]int)
	var merged []string
	for _, layer := range layers {
		for _, entry := range layer {
			name, _, ok := strings.Cut(entry, "=")
			if !ok || name == "" || strings.ContainsRune(entry, 0) {
				continue
			}
			if i, ok := index[name]; ok {
				merged[i] = entry
				continue
			}
			index[name] = len(merged)
			merged = append(merged, entry)
		}
	}
	return merged
}

func getenv(env []string, name string) string {
	for _, entry := range env {
		if n, value, _ := strings.Cut(entry, "="); n == name {
			return value
		}
	}
	return ""
}

// lookPath finds a program: by itself if its name has a slash, else in path. A
// relative name counts from dir, where the command will run.
func lookPath(name, path, dir string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(absolute(name, dir))
	}
	err := error(fs.ErrNotExist)
	for _, d := range filepath.SplitList(path) {
		candidate := filepath.Join(absolute(d, dir), name)
		switch e := executable(candidate); {
		case e == nil:
			return candidate, nil
		case !os.IsNotExist(e):
			err = e // there, but not to be executed: says more
		}
	}
	return "", err
}

func absolute(path, dir string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err.(*fs.PathError).Err
	case info.IsDir():
		return unix.EISDIR
	case info.Mode()&0o111 == 0:
		return fs.ErrPermission
	}
	return nil
}
