package image

import (
	"context"
	"debug/elf"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/image/apt"
)

// testImages names the environment variable with the path of a store where the image
// "debian" is built already. Without it the tests build one.
const testImages = "SMOLVM_TEST_IMAGES"

func testLog() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// needDebian skips the test where the image can't be built for a lack that the test
// can't do anything about.
func needDebian(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("builds as root; see docs for what users need")
	}
	osRelease, err := os.ReadFile("/etc/os-release")
	if err != nil || kernelPackage(apt.ParseRelease(osRelease)) == "" {
		t.Skip("this host is neither Debian nor Ubuntu")
	}
}

// TestDebian looks closely at the image: that its kernel and modules are whole and its
// filesystem is what machines rely on.
func TestDebian(t *testing.T) {
	needDebian(t)
	dir := os.Getenv(testImages)
	if dir == "" {
		if testing.Short() {
			t.Skip("takes half a minute and is asked to be short")
		}
		dir = t.TempDir()
	}
	s := NewStore(Options{Dir: dir, Log: testLog()})
	img, err := s.Ensure(t.Context(), Default, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}

	kernel, err := elf.Open(img.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if kernel.Machine != elf.EM_X86_64 || kernel.Type != elf.ET_EXEC {
		t.Errorf("kernel is %v, %v", kernel.Machine, kernel.Type)
	}
	if err := kernel.Close(); err != nil {
		t.Error(err)
	}
	checkModuleOrder(t, img)

	usage, err := img.Usage()
	if err != nil || usage.Bytes > 400<<20 {
		t.Errorf("the image occupies %d MiB, %v", usage.Bytes>>20, err)
	}
	if img.RootFSSize != rootFSSize {
		t.Errorf("root filesystem of %d bytes", img.RootFSSize)
	}
	checkFilesystem(t, img)
	checkFiles(t, img)
}

// checkModuleOrder reads from the modules themselves that each comes after what it needs.
func checkModuleOrder(t *testing.T, img *Image) {
	t.Helper()
	loaded := map[string]bool{}
	depends := regexp.MustCompile(`\x00depends=([^\x00]*)\x00`)
	for _, file := range img.Modules {
		module, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		match := depends.FindSubmatch(module)
		if match == nil {
			t.Fatalf("%s does not say what it needs", file)
		}
		for need := range strings.SplitSeq(string(match[1]), ",") {
			if need != "" && !loaded[need] {
				t.Errorf("%s needs %s, which is not loaded before", file, need)
			}
		}
		loaded[strings.TrimSuffix(filepath.Base(file), ".ko")] = true
	}
	// None of these is built into a Debian kernel for the cloud.
	if strings.Contains(img.KernelVersion, "cloud") {
		for _, name := range []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng"} {
			if !loaded[name] {
				t.Errorf("module %s is missing", name)
			}
		}
	}
}

// program runs a program of e2fsprogs and returns its output.
func program(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := findTool(name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(out)
}

func checkFilesystem(t *testing.T, img *Image) {
	t.Helper()
	about := program(t, "dumpe2fs", img.RootFS)
	for _, line := range []string{
		`Filesystem volume name: +smolvm-root`, `Reserved block count: +0`, `Filesystem state: +clean`,
		`Filesystem features: .*has_journal.*extent`,
	} {
		if !regexp.MustCompile(line).MatchString(about) {
			t.Errorf("dumpe2fs has no line %q", line)
		}
	}
	groups, zeroed := len(regexp.MustCompile(`(?m)^Group \d+:`).FindAllString(about, -1)), strings.Count(about, "ITABLE_ZEROED")
	if groups == 0 || groups != zeroed {
		t.Errorf("inode tables of %d of %d groups are marked as zeroed", zeroed, groups)
	}
	program(t, "e2fsck", "-f", "-n", img.RootFS)
}

// checkFiles reads files in the root filesystem.
func checkFiles(t *testing.T, img *Image) {
	t.Helper()
	debugfs := func(request string) string { return program(t, "debugfs", "-R", request, img.RootFS) }
	for _, name := range []string{"/etc/machine-id", "/etc/resolv.conf", "/etc/hostname"} {
		if about := debugfs("stat " + name); !strings.Contains(about, "Type: regular") || !regexp.MustCompile(`Size: 0\b`).MatchString(about) {
			t.Errorf("%s is no empty file: %s", name, about)
		}
	}
	for name, want := range map[string]string{
		"/etc/shadow":           `(?m)^root:\*:`,
		"/usr/sbin/policy-rc.d": `exit 101`,
		"/etc/hosts":            `127\.0\.0\.1\s+localhost`,
		"/usr/lib/modules/" + img.KernelVersion + "/modules.dep": `(?m)^kernel/fs/overlayfs/overlay\.ko:[\s\S]*^kernel/net/bridge/br_netfilter\.ko: .*bridge\.ko`,
		"/etc/apt/apt.conf.d/90smolvm":                           `Acquire::Languages "none";`,
	} {
		if got := debugfs("cat " + name); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s does not match %q:\n%s", name, want, got)
		}
	}
	for dir, want := range map[string]string{
		"/usr/bin": "python3|pgrep|ping|curl|apt-get|bash", "/usr/sbin": "ip|modprobe|policy-rc.d", "/usr/share/man": "man1|man8",
		"/etc/ssl/certs": "ca-certificates.crt", "/var/lib/apt/lists": "partial",
	} {
		for name := range strings.SplitSeq(want, "|") {
			if !strings.Contains(debugfs("ls -p "+dir), "/"+name+"/") {
				t.Errorf("%s/%s is missing", dir, name)
			}
		}
	}
	for dir, unwanted := range map[string]string{
		"/": kernelDebs, "/etc/apt/apt.conf.d": "99mmdebstrap", "/etc/dpkg/dpkg.cfg.d": "99mmdebstrap", "/dev": "null",
		"/boot": "vmlinuz-" + img.KernelVersion,
	} {
		if strings.Contains(debugfs("ls -p "+dir), "/"+unwanted+"/") {
			t.Errorf("%s/%s is there", dir, unwanted)
		}
	}
	sources := debugfs("cat /etc/apt/sources.list.d/debian.sources") + debugfs("cat /etc/apt/sources.list.d/ubuntu.sources")
	entries, err := apt.ParseSources([]byte(sources))
	if err != nil || len(entries) == 0 {
		t.Errorf("package sources: %v, %v", entries, err)
	}
	for _, e := range entries {
		for _, file := range e.Keyrings() {
			if !strings.Contains(debugfs("stat "+file), "Type: regular") {
				t.Errorf("keyring %s is missing", file)
			}
		}
	}
}

// TestDebianKilled kills a real build while packages are being installed, and looks for
// processes, mounts and files.
func TestDebianKilled(t *testing.T) {
	needDebian(t)
	if testing.Short() {
		t.Skip("downloads packages and is asked to be short")
	}
	dir := t.TempDir()
	builder := startHelper(t, "debian", dir, "")
	builder.until(t, "stage "+stageBase)
	within := func() []string { return processesWithin(t, dir) }
	waitFor(t, "packages are being installed", func() bool { return len(within()) > 0 })
	builder.kill(t)
	waitFor(t, "all processes end", func() bool { return len(within()) == 0 })
	if mounts, err := mountsBelow(dir); err != nil || len(mounts) > 0 {
		t.Errorf("mounts remain: %q, %v", mounts, err)
	}
	s := NewStore(Options{Dir: dir, Log: testLog()})
	if _, err := s.Get(Default); !errors.Is(err, ErrNotFound) {
		t.Errorf("half an image is found: %v", err)
	}
	if debris, err := filepath.Glob(filepath.Join(dir, Default, buildPrefix+"*")); err != nil || len(debris) != 1 {
		t.Errorf("%q, %v: nothing was interrupted, the test tests nothing", debris, err)
	}
	// The next build, which this one's source ends at once, removes the debris.
	refused := errors.New("not now")
	s.source = &fakeSource{builds: filepath.Join(t.TempDir(), "builds"), run: func(context.Context, *Job) error { return refused }}
	if _, err := s.Ensure(t.Context(), Default, PullMissing, nil); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("remains: %v, %v", entries, err)
	}
}

// processesWithin finds the processes whose root directory is below dir.
func processesWithin(t *testing.T, dir string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/root")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, link := range links {
		if root, err := os.Readlink(link); err == nil && strings.HasPrefix(root, dir+"/") {
			found = append(found, link)
		}
	}
	return found
}

// hostEtc makes an /etc for the source to look at.
func hostEtc(t *testing.T, osRelease, sources string) string {
	t.Helper()
	etc := t.TempDir()
	if err := os.Mkdir(filepath.Join(etc, "apt"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"os-release": osRelease, "apt/sources.list": sources} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return etc
}

func TestUnsuitableHosts(t *testing.T) {
	for name, c := range map[string]struct{ osRelease, sources, want string }{
		"other distribution": {"ID=example\nVERSION_CODENAME=x\nPRETTY_NAME=Example\n", "", `it runs "Example"`},
		"no release":         {"ID=debian\n", "", "it runs"},
		"no sources":         {"ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://example.org/x stable main\n", "no package source"},
	} {
		d := &debian{etc: hostEtc(t, c.osRelease, c.sources)}
		_, err := d.Build(t.Context(), &Job{Dir: t.TempDir(), Log: testLog(), report: func(Progress) {}})
		if !errors.Is(err, ErrHost) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExplain(t *testing.T) {
	err := errors.New("no")
	if got := (&host{root: true}).explain(err); got != err {
		t.Errorf("root is told: %v", got)
	}
	if got := (&host{}).explain(err); !errors.Is(got, err) || !strings.Contains(got.Error(), "sudo smolvm pull debian") {
		t.Errorf("a user is told: %v", got)
	}
	if got := (&host{}).explain(context.Canceled); got != context.Canceled {
		t.Errorf("who cancels is told: %v", got)
	}
}

func TestHasRange(t *testing.T) {
	file := []byte("alice:100000:65536\n1007:165536:65536\nmalformed\n")
	for user, want := range map[[2]string]bool{{"alice", "1"}: true, {"bob", "1007"}: true, {"bob", "100000"}: false, {"malformed", "1"}: false} {
		if got := hasRange(file, user[0], user[1]); got != want {
			t.Errorf("%v: %v", user, got)
		}
	}
}
