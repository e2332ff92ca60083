package guest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// user is whom commands run as: always the guest's root.
type user struct {
	name, home, shell string
}

// rootUser reads the root user's entry of a password file. What it lacks has the
// usual values.
func rootUser(passwd string) user {
	u := user{name: "root", home: "/root", shell: "/bin/sh"}
	data, err := os.ReadFile(passwd)
	if err != nil {
		return u
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 7 || fields[2] != "0" {
			continue
		}
		if home := fields[5]; filepath.IsAbs(home) {
			u.home = home
		}
		if shell := fields[6]; filepath.IsAbs(shell) {
			u.shell = shell
		}
		return u
	}
	return u
}

// directory is where the user's commands start: home if it is there.
func (u user) directory() string {
	if info, err := os.Stat(u.home); err == nil && info.IsDir() {
		return u.home
	}
	return "/"
}

func (u user) env() []string {
	return []string{"PATH=" + defaultPath, "HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name, "SHELL=" + u.shell}
}

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
