package guest

import (
	"os"
	"strings"
	"time"
)

const (
	clockSourceFile = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
	// earlyClockSource is what the kernel counts with until it has measured for a second how fast
	// the processor's counter is.
	earlyClockSource = "tsc-early"
	// clockSourceLimit bounds the wait for the end of that.
	clockSourceLimit = 3 * time.Second
	clockSourceRetry = 20 * time.Millisecond
)

// awaitClockSource returns once the kernel has settled on what it counts time with. It stops the
// processors for that and does much else, which is better done before the guest is copied than in
// every copy. The kernel tells nobody when it has.
func awaitClockSource(file string, limit time.Duration) {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(clockSourceRetry) {
		current, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(current)) != earlyClockSource {
			return
		}
	}
}
