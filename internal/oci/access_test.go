package oci

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"
)

const (
	user   = "alice"
	secret = "s3cr3t-of-alice"
	wrong  = "not-the-s3cr3t"
)

// atHome empties the tests' home directory.
func atHome(t *testing.T) string {
	t.Helper()
	home := os.Getenv("HOME")
	if err := errors.Join(os.RemoveAll(home), os.Mkdir(home, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, variable := range []string{"DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "REGISTRY_AUTH_FILE", "CONTAINERS_REGISTRIES_CONF"} {
		t.Setenv(variable, "")
	}
	return home
}

// logIn writes a password for a registry where docker login or podman login would.
func logIn(t *testing.T, path, host, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	data, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, data)
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantNoSecret checks that a text tells no password.
func wantNoSecret(t *testing.T, text string) {
	t.Helper()
	for _, password := range []string{secret, wrong} {
		for _, form := range []string{password, base64.StdEncoding.EncodeToString([]byte(user + ":" + password))} {
			if strings.Contains(text, form) {
				t.Errorf("tells a secret: %s", text)
			}
		}
	}
}

// startGuarded starts a registry that wants a password.
func startGuarded(t *testing.T) *server {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	passwords := filepath.Join(t.TempDir(), "htpasswd")
	writeFile(t, passwords, fmt.Appendf(nil, "%s:%s\n", user, hash))
	return startServer(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", passwords))
}

func TestPasswords(t *testing.T) {
	s := startGuarded(t)
	l := layer(t, 1, 1000)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l), remote.WithAuth(&authn.Basic{Username: user, Password: secret}))
	for name, path := range map[string]func(home string) string{
		"docker": func(home string) string { return filepath.Join(home, ".docker/config.json") },
		"docker elsewhere": func(home string) string {
			t.Setenv("DOCKER_CONFIG", filepath.Join(home, "elsewhere"))
			return filepath.Join(home, "elsewhere/config.json")
		},
		"podman": func(home string) string {
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, "run"))
			return filepath.Join(home, "run/containers/auth.json")
		},
		"podman for good": func(home string) string { return filepath.Join(home, ".config/containers/auth.json") },
	} {
		home := atHome(t)
		p := newPuller(t)
		p.Keychain = nil
		_, err := p.pull(t, s.Addr+"/app:v1")
		wantError(t, err, ErrAccess, "without a login", "docker login "+s.Addr, "podman login "+s.Addr)
		file := path(home)
		logIn(t, file, s.Addr, wrong)
		_, err = p.pull(t, s.Addr+"/app:v1")
		wantError(t, err, ErrAccess, "whose login is stored", "docker login "+s.Addr)
		wantNoSecret(t, err.Error())
		logIn(t, file, s.Addr, secret)
		image, err := p.pull(t, s.Addr+"/app:v1")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantLayers(t, image, l)
		_, err = p.pull(t, s.Addr+"/app:nosuch")
		wantError(t, err, ErrNotFound)
		wantNoSecret(t, err.Error())
		wantNoSecret(t, p.log.String())
	}
	writeFile(t, filepath.Join(atHome(t), ".docker/config.json"), []byte("{"))
	p := newPuller(t)
	p.Keychain = nil
	if _, err := p.pull(t, s.Addr+"/app:v1"); err == nil || !strings.Contains(err.Error(), "read the credentials for "+s.Addr) {
		t.Errorf("with a broken configuration: %v", err)
	}
}

// TestTokens has a registry that gives tokens for a password, and lets them expire in the middle.
func TestTokens(t *testing.T) {
	s := startServer(t, "")
	layers := []v1.Layer{layer(t, 1, 1000), layer(t, 2, 1000), layer(t, 3, 1000), layer(t, 4, 1000)}
	s.push(t, "team/app:v1", imageOf(t, "linux/amd64", layers...))
	f := newFront(t, s.Addr)
	var issued, uses atomic.Int64 // tokens, and how often the first was used
	denied := atomic.Bool{}
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if u, p, _ := r.BasicAuth(); u != user || p != secret || r.URL.Query().Get("scope") != "repository:team/app:pull" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			if denied.Load() {
				_, _ = fmt.Fprintf(w, `{"refresh_token": %q}`, secret)
				return true
			}
			_, _ = fmt.Fprintf(w, `{"token": "token-%d"}`, issued.Add(1))
			return true
		}
		token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer token-")
		if found && (token != "1" || uses.Add(1) <= 3) {
			r.Header.Del("Authorization")
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:team/app:pull"`, r.Host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	home := atHome(t)
	p := newPuller(t)
	p.Keychain = nil
	_, err := p.pull(t, f.addr+"/team/app:v1")
	wantError(t, err, ErrAccess, "without a login", "docker login "+f.addr)
	file := filepath.Join(home, ".docker/config.json")
	logIn(t, file, f.addr, wrong)
	_, err = p.pull(t, f.addr+"/team/app:v1")
	wantError(t, err, ErrAccess, "whose login is stored")
	wantNoSecret(t, err.Error())
	logIn(t, file, f.addr, secret)
	wantLayers(t, p.mustPull(t, f.addr+"/team/app:v1"), layers...)
	if n := issued.Load(); n < 2 {
		t.Errorf("%d tokens were given", n)
	}
	denied.Store(true)
	_, err = p.pull(t, f.addr+"/team/app:v1")
	if err == nil || !strings.Contains(err.Error(), "gave no token") {
		t.Errorf("got %v", err)
	}
	wantNoSecret(t, fmt.Sprint(err))
	wantNoSecret(t, p.log.String())
}
