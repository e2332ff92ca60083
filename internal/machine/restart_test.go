package machine

import (
	"errors"
	"testing"
	"time"
)

func TestRestartPolicy(t *testing.T) {
	for policy, want := range map[RestartPolicy]struct{ ended, failed, failedTwice bool }{
		"":                    {},
		RestartNo:             {},
		RestartOnFailure:      {failed: true, failedTwice: true},
		OnFailure(2):          {failed: true},
		RestartAlways:         {ended: true, failed: true, failedTwice: true},
		RestartUnlessStopped:  {ended: true, failed: true, failedTwice: true},
		"on-failure:1":        {},
		"of a later version":  {},
		"on-failure:nonsense": {},
	} {
		if policy.again(false, 1) != want.ended || policy.again(true, 1) != want.failed || policy.again(true, 2) != want.failedTwice {
			t.Errorf("%q: %t, %t, %t", policy, policy.again(false, 1), policy.again(true, 1), policy.again(true, 2))
		}
	}
	for _, bad := range []RestartPolicy{"sometimes", "always:3", "no:1", "on-failure:", "on-failure:0", "on-failure:-1", "on-failure:x", "on-failure:1:2", ":3"} {
		if _, _, err := bad.parse(); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestBackOff(t *testing.T) {
	var b backOff
	want := firstRestartPause
	for range 20 {
		if got := b.next(soundRun - time.Nanosecond); got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
		want = min(2*want, lastRestartPause)
	}
	if want != lastRestartPause {
		t.Errorf("the last one is %v", want)
	}
	if got := b.next(soundRun); got != firstRestartPause {
		t.Errorf("after a long run: %v", got)
	}
	if got := b.next(0); got != 2*firstRestartPause {
		t.Errorf("and then: %v", got)
	}
}
