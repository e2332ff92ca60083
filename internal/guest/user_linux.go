package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
)

// user is whom a command runs as.
type user struct {
	name, home, shell string
	// credential is nil for root as the guest program itself is root.
	credential *syscall.Credential
}

// rootUser reads the root user's entry of a password file. What it lacks has the
// usual values.
func rootUser(passwd string) user {
	u := user{name: "root", home: "/root", shell: "/bin/sh"}
	data, err := os.ReadFile(passwd)
	if err != nil {
		return u
	}
	for a := range accounts(string(data)) {
		if a.uid == 0 {
			a.fill(&u)
			break
		}
	}
	return u
}

// findUser reads who "USER" or "USER:GROUP" is, each a name or a number, from a password
// and a group file. A number need not be in them: its group is 0 then, and its home "/".
// A group that is given takes the place of all the user's own.
func findUser(passwd, group, who string) (user, error) {
	name, groupName, grouped := strings.Cut(who, ":")
	users, err := readTable(passwd)
	if err != nil {
		return user{}, err
	}
	groups, err := readTable(group)
	if err != nil {
		return user{}, err
	}
	u := user{name: name, home: "/", shell: "/bin/sh", credential: &syscall.Credential{}}
	number, isNumber := identifier(name)
	found := false
	for a := range accounts(users) {
		if a.name == name || isNumber && !found && a.uid == number {
			found = true
			u.name, u.home, u.shell = a.name, "/", "/bin/sh"
			a.fill(&u)
			u.credential.Uid, u.credential.Gid = a.uid, a.gid
			if a.name == name {
				break
			}
		}
	}
	switch {
	case !found && name == "root":
		u.home = "/root" // who needs no file to be there
	case !found && !isNumber:
		return user{}, fmt.Errorf("unknown user %q", name)
	case !found:
		u.credential.Uid = number
	}
	if !grouped {
		u.credential.Groups = memberships(groups, u.name)
		return u, nil
	}
	gid, ok := findGroup(groups, groupName)
	if !ok {
		return user{}, fmt.Errorf("unknown group %q", groupName)
	}
	u.credential.Gid = gid
	return u, nil
}

// readTable reads a file of accounts. One that is not there is empty.
func readTable(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look up user: %w", err)
	}
	return string(data), nil
}

// account is an entry of a password file.
type account struct {
	name, home, shell string
	uid, gid          uint32
}

// accounts are the entries of a password file that make sense.
func accounts(passwd string) func(yield func(account) bool) {
	return func(yield func(account) bool) {
		for line := range strings.Lines(passwd) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			if len(fields) < 7 || fields[0] == "" {
				continue
			}
			uid, uidOK := identifier(fields[2])
			gid, gidOK := identifier(fields[3])
			if uidOK && gidOK && !yield(account{fields[0], fields[5], fields[6], uid, gid}) {
				return
			}
		}
	}
}

// fill sets in u what the account has.
func (a account) fill(u *user) {
	if filepath.IsAbs(a.home) {
		u.home = a.home
	}
	if filepath.IsAbs(a.shell) {
		u.shell = a.shell
	}
}

// eachGroup calls do with each entry of a group file that makes sense, until it
// returns false.
func eachGroup(group string, do func(name string, gid uint32, members []string) bool) {
	for line := range strings.Lines(group) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 4 || fields[0] == "" {
			continue
		}
		if gid, ok := identifier(fields[2]); ok && !do(fields[0], gid, strings.Split(fields[3], ",")) {
			return
		}
	}
}

// memberships are the groups that a group file lists the user in.
func memberships(group, name string) []uint32 {
	var ids []uint32
	eachGroup(group, func(_ string, gid uint32, members []string) bool {
		if slices.Contains(members, name) && !slices.Contains(ids, gid) {
			ids = append(ids, gid)
		}
		return true
	})
	return ids
}

// findGroup returns the number of a group that is given by its name or number.
func findGroup(group, name string) (gid uint32, ok bool) {
	eachGroup(group, func(n string, id uint32, _ []string) bool {
		gid, ok = id, n == name
		return !ok
	})
	if !ok {
		gid, ok = identifier(name)
	}
	return gid, ok
}

// identifier reads the number of a user or group. The highest one means none.
func identifier(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != math.MaxUint32
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
