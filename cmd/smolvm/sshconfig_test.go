package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvm/smolvm"
)

func TestSSHHost(t *testing.T) {
	access := smolvm.SSHAccess{
		User: "root", IdentityFile: `/data dir/100%/a"b\c/key`, KnownHostsFile: "/data dir/known_hosts", HostKeyAlias: "web.smolvm",
	}
	host, err := sshEntry{"web", access, []string{"/opt/it's here/100%/smolvm", "--data-dir", "/data dir", "proxy", "web"}}.config()
	if err != nil {
		t.Fatal(err)
	}
	want := `Host smolvm-web web.smolvm
    HostName web.smolvm
    User root
    IdentityFile "/data dir/100%%/a\"b\\c/key"
    IdentitiesOnly yes
    UserKnownHostsFile "/data dir/known_hosts"
    HostKeyAlias web.smolvm
    StrictHostKeyChecking yes
    UpdateHostKeys no
    ForwardAgent no
    ForwardX11 no
    ProxyCommand '/opt/it'\''s here/100%%/smolvm' '--data-dir' '/data dir' 'proxy' 'web'
`
	if host != want {
		t.Errorf("%s\nnot\n%s", host, want)
	}
}

func TestSSHHostIsOfOneVM(t *testing.T) {
	access := smolvm.SSHAccess{User: "root", IdentityFile: "/a\nProxyCommand touch /tmp/x", KnownHostsFile: "/b"}
	if host, err := (sshEntry{"web", access, []string{"smolvm"}}).config(); err == nil {
		t.Errorf("a path with a line of its own gives %q", host)
	}
}

func TestShellQuoted(t *testing.T) {
	for _, word := range []string{"plain", "two words", `it's "so"`, "$HOME `id` \\ * ~", "", "'", "tab\tand\nline"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+shellQuoted(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("the shell makes %q of %q: %v", out, word, err)
		}
	}
}

func TestProxyCommandNamesTheDataDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	command, err := (&globals{dataDir: "data"}).proxyCommand()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("data")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(command[1:], " "), "--data-dir "+dir+" proxy"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	if !filepath.IsAbs(command[0]) {
		t.Errorf("%q is found from here only", command[0])
	}
	if command, err = (&globals{}).proxyCommand(); err != nil || len(command) != 2 {
		t.Errorf("%q, %v", command, err)
	}
}
