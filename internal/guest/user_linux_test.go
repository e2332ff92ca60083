package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestRootUser(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	for content, want := range map[string]user{
		"": {name: "root", home: "/root", shell: "/bin/sh"},
		"a:x:1:1::/a:/a\nroot:x:0:0:root:/home/root:/bin/zsh\n": {name: "root", home: "/home/root", shell: "/bin/zsh"},
		"root:x:0:0:root:home:\n":                               {name: "root", home: "/root", shell: "/bin/sh"},
		"root:x:0\n":                                            {name: "root", home: "/root", shell: "/bin/sh"},
	} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := rootUser(file); got != want {
			t.Errorf("%q: %+v", content, got)
		}
	}
	if got := rootUser("/no/such/file"); got.home != "/root" {
		t.Errorf("got %+v", got)
	}
}

func FuzzRootUser(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/bash"))
	f.Fuzz(func(t *testing.T, content []byte) {
		file := filepath.Join(t.TempDir(), "passwd")
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if u := rootUser(file); u.name != "root" || !filepath.IsAbs(u.home) || !filepath.IsAbs(u.shell) {
			t.Fatalf("got %+v", u)
		}
	})
}

// accountFiles writes a password and a group file.
func accountFiles(t testing.TB, passwd, group string) (passwdPath, groupPath string) {
	t.Helper()
	dir := t.TempDir()
	passwdPath, groupPath = filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	for path, content := range map[string]string{passwdPath: passwd, groupPath: group} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return passwdPath, groupPath
}

func TestFindUser(t *testing.T) {
	passwd, group := accountFiles(t,
		"root:x:0:0:root:/root:/bin/bash\nana:x:1000:1001:Ana:/home/ana:/bin/zsh\nbob:x:1002:1002::home:\n77:x:1003:3::/seven:/bin/sh\nodd:x:77:4::/odd:/bin/sh\nbad:x:-1:0::/:/bin/sh\nbad2:x:4294967295:0::/:/bin/sh\n",
		"root:x:0:\nana:x:1001:\ndocker:x:50:bob,ana\nvideo:x:51:ana\nagain:x:51:ana\nbroken:x:y:ana\n")
	for who, want := range map[string]user{
		"root":       {"root", "/root", "/bin/bash", &syscall.Credential{}},
		"0":          {"root", "/root", "/bin/bash", &syscall.Credential{}},
		"ana":        {"ana", "/home/ana", "/bin/zsh", &syscall.Credential{Uid: 1000, Gid: 1001, Groups: []uint32{50, 51}}},
		"1000":       {"ana", "/home/ana", "/bin/zsh", &syscall.Credential{Uid: 1000, Gid: 1001, Groups: []uint32{50, 51}}},
		"ana:video":  {"ana", "/home/ana", "/bin/zsh", &syscall.Credential{Uid: 1000, Gid: 51}},
		"ana:7":      {"ana", "/home/ana", "/bin/zsh", &syscall.Credential{Uid: 1000, Gid: 7}},
		"bob":        {"bob", "/", "/bin/sh", &syscall.Credential{Uid: 1002, Gid: 1002, Groups: []uint32{50}}},
		"4242":       {"4242", "/", "/bin/sh", &syscall.Credential{Uid: 4242}},
		"4242:video": {"4242", "/", "/bin/sh", &syscall.Credential{Uid: 4242, Gid: 51}},
		"77":         {"77", "/seven", "/bin/sh", &syscall.Credential{Uid: 1003, Gid: 3}}, // a name before a number
	} {
		got, err := findUser(passwd, group, who)
		if err != nil {
			t.Errorf("%s: %v", who, err)
			continue
		}
		c, w := got.credential, want.credential
		if got.name != want.name || got.home != want.home || got.shell != want.shell || c.Uid != w.Uid || c.Gid != w.Gid || !slices.Equal(c.Groups, w.Groups) {
			t.Errorf("%s: %+v %+v", who, got, c)
		}
	}
	for who, says := range map[string]string{
		"eve": `unknown user "eve"`, "": `unknown user ""`, ":video": `unknown user ""`, "ana:": `unknown group ""`, "ana:none": `unknown group "none"`,
		"bad": "unknown user", "4294967295": "unknown user", "-1": "unknown user", "ana:video:x": "unknown group",
	} {
		if u, err := findUser(passwd, group, who); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %+v, %v", who, u, err)
		}
	}
	if u, err := findUser("/no/such", "/no/such", "root"); err != nil || u.home != "/root" || u.credential.Uid != 0 {
		t.Errorf("root without files: %+v, %v", u, err)
	}
}

func FuzzFindUser(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/bash", "root:x:0:", "root")
	f.Add("ana:x:1000:1001:Ana:/home/ana:/bin/zsh", "video:x:51:ana", "1000:video")
	f.Fuzz(func(t *testing.T, passwd, group, who string) {
		passwdPath, groupPath := accountFiles(t, passwd, group)
		u, err := findUser(passwdPath, groupPath, who)
		if err == nil && (u.name == "" || u.credential == nil || !filepath.IsAbs(u.home) || !filepath.IsAbs(u.shell)) {
			t.Fatalf("got %+v", u)
		}
	})
}
