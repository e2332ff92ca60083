package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm"
)

// The commands in the documentation are those that are run here: all blocks of a page that are
// marked sh, in their order, as one script. What cannot be run here, such as an installation, is
// marked console.

const repository = "../.."

// pages are all pages for users.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(repository + "/docs/*.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("pages: %v, %v", found, err)
	}
	return append(found, repository+"/README.md")
}

func TestDocumentedCommands(t *testing.T) {
	for _, page := range pages(t) {
		script := commandsOf(t, page)
		if script == "" {
			continue
		}
		t.Run(filepath.Base(page), func(t *testing.T) { runPage(t, script) })
	}
}

var commandBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// commandsOf returns the commands of a page.
func commandsOf(t *testing.T, page string) string {
	t.Helper()
	var script strings.Builder
	for _, block := range commandBlock.FindAllSubmatch(read(t, page), -1) {
		script.Write(block[1])
	}
	return script.String()
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// pagePatience bounds all commands of a page together.
const pagePatience = 3 * time.Minute

// runPage runs commands as a user of whom nothing is known yet. They must leave no VM.
func runPage(t *testing.T, script string) {
	newFixture(t) // nothing else is left either
	home := emptyHome(t)
	data := dataDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), pagePatience)
	defer cancel()
	as := func(program string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = home
		cmd.Env = append(os.Environ(), "HOME="+home, "SMOLVM_DATA_DIR="+data, "PATH="+filepath.Dir(smolvmPath)+":"+os.Getenv("PATH"))
		cmd.WaitDelay = time.Second
		return cmd
	}
	var said bytes.Buffer
	cmd := as("bash", "-euxo", "pipefail", "-c", script)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Errorf("%v:\n%s", err, &said)
	}
	left, err := as(smolvmPath, "ls", "-q").Output()
	if err != nil {
		t.Error(err)
	}
	if len(left) > 0 {
		t.Errorf("the page leaves the VMs %q:\n%s", left, &said)
		if out, err := as(smolvmPath, append([]string{"rm", "-f"}, strings.Fields(string(left))...)...).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// emptyHome puts an empty directory over the user's home. OpenSSH asks the system where that
// is, and not the environment.
func emptyHome(t *testing.T) string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", me.HomeDir, "tmpfs", 0, "mode=700"); err != nil {
		t.Fatalf("mount a home: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(me.HomeDir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the home: %v", err)
		}
	})
	return me.HomeDir
}

var (
	pageLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	pageHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchor = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// TestDocumentedLinks looks whether what pages link to in the repository is there.
func TestDocumentedLinks(t *testing.T) {
	links := 0
	for _, page := range pages(t) {
		for _, link := range pageLink.FindAllSubmatch(read(t, page), -1) {
			target := string(link[1])
			if strings.Contains(target, "://") {
				continue
			}
			links++
			if err := lookUp(page, target); err != nil {
				t.Errorf("%s: %v", filepath.Base(page), err)
			}
		}
	}
	if links == 0 {
		t.Error("no page links to another")
	}
	if err := lookUp(pages(t)[0], "no-such-page.md"); err == nil {
		t.Error("a page was found that there is not")
	}
}

// lookUp looks for what a page links to: a file, and behind # one of its headings.
func lookUp(page, target string) error {
	file, anchor, hasAnchor := strings.Cut(target, "#")
	path := page
	if file != "" {
		path = filepath.Join(filepath.Dir(page), file)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("link to %s: %w", target, err)
	}
	if !hasAnchor {
		return nil
	}
	for _, heading := range pageHeading.FindAllSubmatch(text, -1) {
		name := notInAnchor.ReplaceAllString(strings.ToLower(string(heading[1])), "")
		if strings.ReplaceAll(name, " ", "-") == anchor {
			return nil
		}
	}
	return fmt.Errorf("link to %s: there is no such heading", target)
}

// TestDocumentedFields looks whether the page for programmers has every field of the JSON.
func TestDocumentedFields(t *testing.T) {
	page := string(read(t, repository+"/docs/scripting.md"))
	for _, output := range []any{smolvm.Info{}, smolvm.ImageInfo{}, smolvm.Check{}, smolvm.Pruned{}, smolvm.SSHAccess{}, smolvm.Snapshot{}} {
		fields := jsonFields(reflect.TypeOf(output), "")
		if len(fields) == 0 {
			t.Errorf("%T has no fields", output)
		}
		for _, field := range fields {
			if !strings.Contains(page, "`"+field+"`") {
				t.Errorf("%T: there is no word of %q", output, field)
			}
		}
	}
}

// jsonFields lists the fields that a struct has in JSON, and those of what is in it. A forward's
// stand alone, as they are told of in a list of their own.
func jsonFields(of reflect.Type, before string) (fields []string) {
	for i := range of.NumField() {
		field := of.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		inner := field.Type
		for inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		switch path := before + name; {
		case name == "-":
		case field.Anonymous:
			fields = append(fields, jsonFields(inner, before)...)
		case field.Type.Kind() == reflect.Slice && inner.Kind() == reflect.Struct:
			fields = append(append(fields, path), jsonFields(inner, "")...)
		case inner.Kind() == reflect.Struct && inner.NumField() > 0 && inner.Field(0).Tag.Get("json") != "":
			fields = append(append(fields, path), jsonFields(inner, path+".")...)
		default:
			fields = append(fields, path)
		}
	}
	return fields
}
