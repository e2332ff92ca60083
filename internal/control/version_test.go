package control

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/sockdir"
)

// serveRaw serves whatever handler does as a VM's owner.
func serveRaw(t *testing.T, handler http.HandlerFunc) *client {
	t.Helper()
	dir := t.TempDir()
	d, err := sockdir.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	l, err := d.Listener(t.Context(), socketName)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	c := newClient("web", dir, slog.New(slog.DiscardHandler))
	return c
}

// TestOtherVersion: the answer of an owner of another version is never taken for one of this
// version's.
func TestOtherVersion(t *testing.T) {
	for api, want := range map[string]string{
		"2": `VM "web" is run by smolvm 9.1 (process 42), which speaks version 2 of the control API, and this is version 1`,
		"":  `what serves control.sock of VM "web" does not speak its language`,
	} {
		c := serveRaw(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(headerAPI, api)
			w.Header().Set(headerVersion, "9.1")
			w.Header().Set(headerPID, "42")
			_ = json.NewEncoder(w).Encode(map[string]any{"name": 7})
		})
		if _, err := c.Info(t.Context()); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), want) {
			t.Errorf("info from version %q: %v", api, err)
		}
		if _, err := c.Dial(t.Context(), "localhost:22"); !errors.Is(err, ErrVersion) {
			t.Errorf("dial to version %q: %v", api, err)
		}
	}
}

// TestLaterOwner: a newer owner of the same version may know more; an older one that lacks
// what is asked for is refused by its 404.
func TestLaterOwner(t *testing.T) {
	c := serveRaw(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerAPI, apiVersion)
		if r.URL.Path != pathVM {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"name": "web", "status": "running", "mood": "good"})
	})
	if info, err := c.Info(t.Context()); err != nil || info.Name != "web" {
		t.Errorf("got %+v, %v", info, err)
	}
	if err := c.Pause(t.Context()); !errors.Is(err, ErrVersion) {
		t.Errorf("a path that the owner does not have: %v", err)
	}
}

// TestUnknownField: a request of which the owner does not understand all is refused.
func TestUnknownField(t *testing.T) {
	c := serveFake(t, &fakeVM{expose: func([]forward.Request) []forward.Forward {
		t.Error("it was done all the same")
		return nil
	}})
	body := json.RawMessage(`{"requests":[{"guest_port":80,"only_from":"10.0.0.1"}]}`)
	err := c.post(t.Context(), pathForwards, body)
	if err == nil || !strings.Contains(err.Error(), "only_from") {
		t.Errorf("got %v, want it to name the field", err)
	}
}
