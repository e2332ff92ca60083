package machine

import (
	"errors"
	"syscall"
	"testing"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "TERM": 15, "sigquit": 3, "Int": 2, "9": 9, "64": 64, "SIG9": 9, "SIGWINCH": 28,
		"SIGRTMIN": 34, "RTMIN+3": 37, "sigrtmin+30": 64, "SIGRTMAX": 64, "SIGRTMAX-30": 34, "RTMAX-1": 63,
	} {
		got, err := ParseSignal(text)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
		if again, err := ParseSignal(signalName(got)); err != nil || again != got {
			t.Errorf("%q: called %q, which is %d, %v", text, signalName(got), again, err)
		}
	}
	for _, bad := range []string{"", "SIG", "0", "65", "-1", "+9 ", "SIGNONE", "RTMIN3", "RTMIN-1", "RTMIN+31", "RTMAX+1", "RTMAX-31", "RTMIN+", "RTMIN+x", "SIGSIGTERM"} {
		if got, err := ParseSignal(bad); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%q: %d, %v", bad, got, err)
		}
	}
}

// What an image says is anybody's.
func FuzzParseSignal(f *testing.F) {
	f.Add("SIGRTMIN+3")
	f.Add("RTMAX-9223372036854775808")
	f.Fuzz(func(t *testing.T, text string) {
		sig, err := ParseSignal(text)
		if err != nil {
			return
		}
		if sig < 1 || sig > lastRealTime {
			t.Errorf("%q is %d", text, sig)
		}
		if again, err := ParseSignal(signalName(sig)); err != nil || again != sig {
			t.Errorf("%q is %d, called %q", text, sig, signalName(sig))
		}
	})
}
