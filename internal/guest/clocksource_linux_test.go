package guest

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// The wait ends when the kernel has settled, if there is nothing to settle, and in any case.
func TestAwaitClockSource(t *testing.T) {
	file := filepath.Join(t.TempDir(), "current_clocksource")
	set := func(source string) {
		if err := os.WriteFile(file, []byte(source+"\n"), 0o600); err != nil {
			t.Error(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		awaitClockSource(file, time.Hour) // a kernel that does not tell
		set("kvm-clock")
		awaitClockSource(file, time.Hour)
		if took := time.Since(begin); took != 0 {
			t.Errorf("waited %v for nothing", took)
		}
		set(earlyClockSource)
		time.AfterFunc(time.Second-clockSourceRetry/2, func() { set("tsc") }) // while it is not looked at
		awaitClockSource(file, time.Hour)
		if took := time.Since(begin); took != time.Second {
			t.Errorf("waited %v", took)
		}
		set(earlyClockSource)
		begin = time.Now()
		awaitClockSource(file, time.Second)
		if took := time.Since(begin); took != time.Second {
			t.Errorf("waited %v for what never comes", took)
		}
	})
}
