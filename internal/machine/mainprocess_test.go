package machine

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
)

func TestConduct(t *testing.T) {
	img := &image.Image{}
	img.Config = image.Config{
		Entrypoint: []string{"serve", "-f"}, Cmd: []string{"site"}, StopSignal: "quit",
		Labels: map[string]string{"of": "image", "both": "image"},
	}
	quit := "SIGQUIT"
	labels := img.Config.Labels
	for name, c := range map[string]struct {
		spec Spec
		want store.Conduct
	}{
		"nothing":         {Spec{}, store.Conduct{StopSignal: quit, Labels: labels}},
		"image's":         {Spec{Main: &MainSpec{Image: true}}, store.Conduct{Main: []string{"serve", "-f", "site"}, StopSignal: quit, Labels: labels}},
		"with arguments":  {Spec{Main: &MainSpec{Image: true, Args: []string{"x", "y"}}}, store.Conduct{Main: []string{"serve", "-f", "x", "y"}, StopSignal: quit, Labels: labels}},
		"another program": {Spec{Main: &MainSpec{Args: []string{"x"}}}, store.Conduct{Main: []string{"x"}, StopSignal: quit, Labels: labels}},
		"policy":          {Spec{Restart: OnFailure(3), StopSignal: "15"}, store.Conduct{Restart: "on-failure:3", Labels: labels}},
		"no policy":       {Spec{Restart: RestartNo, StopSignal: "RTMIN+1"}, store.Conduct{StopSignal: "SIGRTMIN+1", Labels: labels}},
		"labels": {
			Spec{Labels: map[string]string{"both": "own", "own": ""}},
			store.Conduct{StopSignal: quit, Labels: map[string]string{"of": "image", "both": "own", "own": ""}},
		},
	} {
		if got, err := c.spec.conduct(img); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if err := c.spec.checkConduct(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	img.Config = image.Config{StopSignal: "nonsense"}
	if got, err := (Spec{Main: &MainSpec{Image: true}}).conduct(img); err != nil || len(got.Main) > 0 || got.StopSignal != "" {
		t.Errorf("an image that says nothing: %+v, %v", got, err)
	}
	for name, bad := range map[string]Spec{
		"no program": {Main: &MainSpec{Args: []string{"", "x"}}},
		"NUL":        {Main: &MainSpec{Args: []string{"x", "\x00"}}},
	} {
		if _, err := bad.conduct(img); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, bad := range map[string]Spec{
		"policy": {Restart: "sometimes"}, "signal": {StopSignal: "nonsense"}, "label": {Labels: map[string]string{"": "x"}},
		"user": {User: "a\x00"}, "directory": {WorkingDir: "a/b"},
	} {
		if err := bad.checkConduct(); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPublished(t *testing.T) {
	asked := []forward.Request{{GuestPort: 80, HostPort: 8080, HostPortSet: true}, {Protocol: forward.UDP, GuestPort: 53}}
	got, skipped := published(asked, true, []string{"53/tcp", "53/udp", "80/tcp", "443", "6379/tcp", "9000/sctp", "8080:81", "x", "7000-7001/udp"})
	want := []store.Forward{
		{Protocol: "tcp", GuestPort: 80, Wanted: 8080},
		{Protocol: "udp", GuestPort: 53},
		{Protocol: "tcp", GuestPort: 53},
		{Protocol: "tcp", GuestPort: 443},
		{Protocol: "tcp", GuestPort: 6379, Wanted: 6379},
		{Protocol: "udp", GuestPort: 7000, Wanted: 7000},
		{Protocol: "udp", GuestPort: 7001, Wanted: 7001},
	}
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(skipped, []string{"9000/sctp", "8080:81", "x"}) {
		t.Errorf("got %+v, skipped %q", got, skipped)
	}
	if got, skipped := published(nil, false, []string{"80/tcp", "9000/sctp"}); len(got)+len(skipped) > 0 {
		t.Errorf("without being asked: %+v, %q", got, skipped)
	}
}

func TestMainOf(t *testing.T) {
	began, ended, code := time.Unix(1, 0), time.Unix(2, 0), 3
	command := []string{"serve"}
	record := func(m *store.MainRun) store.Record {
		return store.Record{Design: store.Design{Conduct: store.Conduct{Main: command}}, MainRun: m, Restarts: 1}
	}
	for name, c := range map[string]struct {
		rec  store.Record
		runs bool
		want *MainInfo
	}{
		"none":                {store.Record{MainRun: &store.MainRun{ID: "a"}}, true, nil},
		"not yet":             {record(nil), true, &MainInfo{Command: command, Restarts: 1}},
		"runs":                {record(&store.MainRun{PID: 7, Started: began}), true, &MainInfo{Command: command, Running: true, PID: 7, Started: began, Restarts: 1}},
		"ended with the VM":   {record(&store.MainRun{PID: 7, Started: began}), false, &MainInfo{Command: command, Started: began, Restarts: 1}},
		"ended":               {record(&store.MainRun{PID: 7, Started: began, Ended: ended, ExitCode: 3}), false, &MainInfo{Command: command, Started: began, Finished: ended, ExitCode: &code, Restarts: 1}},
		"about to come again": {record(&store.MainRun{PID: 7, Started: began, Ended: ended, ExitCode: 3, Signal: "X"}), true, &MainInfo{Command: command, Started: began, Finished: ended, ExitCode: &code, Signal: "X", Restarts: 1}},
	} {
		if got := mainOf(c.rec, c.runs); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
