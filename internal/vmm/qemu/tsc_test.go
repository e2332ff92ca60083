package qemu

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Two measurements agree to what is promised, and the result is kept until the
// next boot.
func TestTSCFrequency(t *testing.T) {
	if !hasTSC {
		t.Skip("this processor has no time stamp counter")
	}
	dir := t.TempDir()
	khz, err := tscFrequency(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	long, err := measureTSC(t.Context(), 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if ppm := math.Abs(float64(khz-long)) / float64(long) * 1e6; ppm > 2 {
		t.Errorf("%d kHz in %v and %d kHz in a longer time: %.2f ppm", khz, tscBaseline, long, ppm)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if again, err := tscFrequency(cancelled, dir); again != khz || err != nil {
		t.Error("what was kept is not used:", again, err)
	}
	if _, err := tscFrequency(cancelled, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Error("a cancelled measurement:", err)
	}
	for _, bad := range []string{"", "{", `{"boot_id": "another", "khz": 1000000}`} {
		if err := os.WriteFile(filepath.Join(dir, tscFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tscFrequency(cancelled, dir); !errors.Is(err, context.Canceled) {
			t.Errorf("%q is used: %v", bad, err)
		}
	}
}
