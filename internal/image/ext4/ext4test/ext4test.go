// Package ext4test looks at ext4 filesystems in files with the programs of e2fsprogs, for tests.
package ext4test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Node is what a name in a filesystem stands for.
type Node struct {
	Inode    int
	Mode     uint32 // type and permissions, as Unix numbers them
	UID, GID int
	Links    int
	Size     int64
	Blocks   int64 // of 512 bytes
	Modified time.Time
	Target   string            // of a symbolic link
	Device   string            // "major:minor" of a device node
	Extended map[string]string // extended attributes
	SHA256   string            // of a regular file's contents
	Indexed  bool              // a directory with an index
}

// Check fails the test if e2fsck finds anything to repair.
func Check(t testing.TB, path string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "extent tree") {
		t.Fatalf("e2fsck: %v\n%.4000s", err, out)
	}
}

// Read returns all that is in a filesystem by its path, which is "." for the root. No name
// may have a newline in it.
func Read(t testing.TB, path string) map[string]Node {
	t.Helper()
	names := walk(t, path)
	kinds := make(map[int]uint32)
	var commands []string
	for _, n := range names {
		if _, done := kinds[n.Inode]; !done {
			kinds[n.Inode] = n.Mode
			commands = append(commands, fmt.Sprintf("stat <%d>", n.Inode))
		}
	}
	nodes := make(map[int]Node)
	for i, out := range Debugfs(t, path, commands...) {
		var number int
		if _, err := fmt.Sscanf(commands[i], "stat <%d>", &number); err != nil {
			t.Fatal(err)
		}
		nodes[number] = parseStat(t, number, kinds[number], out)
	}
	fill(t, path, nodes)
	all := make(map[string]Node, len(names))
	for name, n := range names {
		all[name] = nodes[n.Inode]
	}
	return all
}

// Debugfs runs commands of debugfs and returns what each printed.
func Debugfs(t testing.TB, path string, commands ...string) []string {
	t.Helper()
	if len(commands) == 0 {
		return nil
	}
	cmd := exec.Command("debugfs", "-f", "-", path)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("debugfs: %v", err)
	}
	outputs := strings.Split("\n"+string(out), "\ndebugfs: ")[1:]
	if len(outputs) != len(commands) {
		t.Fatalf("debugfs answered %d commands of %d", len(outputs), len(commands))
	}
	for i, command := range commands {
		rest, found := strings.CutPrefix(outputs[i], command)
		if !found {
			t.Fatalf("debugfs answered %q to %q", outputs[i], command)
		}
		outputs[i] = strings.TrimPrefix(rest, "\n")
	}
	return outputs
}

// walk returns all names with their inodes and modes.
func walk(t testing.TB, path string) map[string]Node {
	t.Helper()
	all := map[string]Node{".": {Inode: 2, Mode: 0o040000}}
	for dirs := []string{"."}; len(dirs) > 0; {
		var commands, below []string
		for _, dir := range dirs {
			commands = append(commands, fmt.Sprintf("ls -p <%d>", all[dir].Inode))
		}
		for i, out := range Debugfs(t, path, commands...) {
			for line := range strings.SplitSeq(out, "\n") {
				// /inode/mode/uid/gid/name/size/
				fields := strings.Split(line, "/")
				if len(fields) != 8 || fields[1] == "0" || fields[5] == "." || fields[5] == ".." {
					continue
				}
				inode, _ := strconv.Atoi(fields[1])
				mode, _ := strconv.ParseUint(fields[2], 8, 32)
				name := filepath.Join(dirs[i], fields[5])
				if _, twice := all[name]; twice {
					t.Fatalf("debugfs: %q", line)
				}
				all[name] = Node{Inode: inode, Mode: uint32(mode)}
				if mode&0o170000 == 0o040000 {
					below = append(below, name)
				}
			}
		}
		dirs = below
	}
	return all
}

var (
	statLine   = regexp.MustCompile(`Mode: +0*(\d+) +Flags: 0x([0-9a-f]+)`)
	ownerLine  = regexp.MustCompile(`User: +(-?\d+) +Group: +(-?\d+) .*Size: (\d+)`)
	linksLine  = regexp.MustCompile(`Links: (\d+) +Blockcount: (\d+)`)
	timeLine   = regexp.MustCompile(`mtime: 0x([0-9a-f]{8})(?::([0-9a-f]{8}))?`)
	linkLine   = regexp.MustCompile(`(?s)Fast link dest: "(.*)"`)
	deviceLine = regexp.MustCompile(`Device major/minor number: (\d+):(\d+)`)
	extendedRE = regexp.MustCompile(`(?m)^  ((?:user|trusted|security|system)\..*) \((\d+)\)`)
)

func parseStat(t testing.TB, inode int, kind uint32, out string) Node {
	t.Helper()
	number := func(s string, base int) uint64 {
		n, err := strconv.ParseUint(s, base, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	stat, owner, links, when := statLine.FindStringSubmatch(out), ownerLine.FindStringSubmatch(out), linksLine.FindStringSubmatch(out), timeLine.FindStringSubmatch(out)
	if stat == nil || owner == nil || links == nil || when == nil {
		t.Fatalf("debugfs: stat <%d>: %s", inode, out)
	}
	extra := number(cmp.Or(when[2], "0"), 16)
	n := Node{
		Inode: inode, Mode: kind&0o170000 | uint32(number(stat[1], 8)), Indexed: number(stat[2], 16)&0x1000 != 0,
		UID: id(owner[1]), GID: id(owner[2]), Size: int64(number(owner[3], 10)),
		Links: int(number(links[1], 10)), Blocks: int64(number(links[2], 10)),
		Modified: time.Unix(int64(int32(number(when[1], 16)))+int64(extra&3)<<32, int64(extra>>2)).UTC(),
	}
	if m := linkLine.FindStringSubmatch(out); m != nil {
		n.Target = m[1]
	}
	if m := deviceLine.FindStringSubmatch(out); m != nil {
		n.Device = strings.TrimLeft(m[1], "0") + ":" + strings.TrimLeft(m[2], "0")
	}
	for _, m := range extendedRE.FindAllStringSubmatch(out, -1) {
		if n.Extended == nil {
			n.Extended = make(map[string]string)
		}
		n.Extended[m[1]] = ""
	}
	return n
}

// id is a number that debugfs takes for a signed one.
func id(s string) int {
	n, _ := strconv.ParseInt(s, 10, 64)
	return int(uint32(n))
}

// fill adds contents, long targets and the values of attributes.
func fill(t testing.TB, path string, nodes map[int]Node) {
	t.Helper()
	dir := t.TempDir()
	var commands []string
	for i, n := range nodes {
		kind := n.Mode & 0o170000
		if kind == 0o100000 || kind == 0o120000 && n.Target == "" {
			commands = append(commands, fmt.Sprintf("dump <%d> %s/%d", i, dir, i))
		}
		for name := range n.Extended {
			commands = append(commands, fmt.Sprintf("ea_get -f %s/%d.%s <%d> %s", dir, i, hex.EncodeToString([]byte(name))[:min(2*len(name), 200)], i, name))
		}
	}
	Debugfs(t, path, commands...)
	read := func(name string) []byte {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for i, n := range nodes {
		switch kind := n.Mode & 0o170000; {
		case kind == 0o100000:
			n.SHA256 = fmt.Sprintf("%x", sha256.Sum256(read(fmt.Sprintf("%s/%d", dir, i))))
		case kind == 0o120000 && n.Target == "":
			n.Target = string(bytes.TrimRight(read(fmt.Sprintf("%s/%d", dir, i)), "\x00"))
		}
		for name := range n.Extended {
			n.Extended[name] = string(read(fmt.Sprintf("%s/%d.%s", dir, i, hex.EncodeToString([]byte(name))[:min(2*len(name), 200)])))
		}
		nodes[i] = n
	}
}
