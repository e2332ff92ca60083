package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/bootid"
)

// An emulated guest reads the host's time stamp counter as its own. It cannot
// find out how fast that runs, since it has no other timer that is exact under
// emulation, and so it must be told; what it is told wrong, its clock drifts.
const (
	// tscBaseline is how long the measurement takes. It is precise to about
	// 0.1 ppm then, less than the 0.2 ppm lost by telling whole kHz: together less
	// than 30 ms a day.
	tscBaseline = 50 * time.Millisecond
	tscFile     = "tsc.json"
)

var errNoTSC = errors.New("no usable time stamp counter")

// tscRecord is a measurement, good until the host boots again.
type tscRecord struct {
	BootID string `json:"boot_id"`
	KHz    int    `json:"khz"`
}

// tscFrequency returns the frequency of the host's time stamp counter in kHz,
// from cacheDir if it was measured since the host booted.
func tscFrequency(ctx context.Context, cacheDir string) (int, error) {
	if !hasTSC {
		return 0, errNoTSC
	}
	boot, err := bootid.Read()
	if err != nil {
		return 0, err
	}
	path := filepath.Join(cacheDir, tscFile)
	if cacheDir != "" {
		var r tscRecord
		// Whatever is wrong with the file, measuring again mends it.
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &r) == nil && r.BootID == boot && plausibleTSC(r.KHz) {
			return r.KHz, nil
		}
	}
	khz, err := measureTSC(ctx, tscBaseline)
	if err != nil || cacheDir == "" {
		return khz, err
	}
	b, err := json.Marshal(tscRecord{boot, khz})
	if err != nil {
		return 0, err
	}
	if err := renameio.WriteFile(path, b, 0o600); err != nil {
		return 0, fmt.Errorf("keep frequency of time stamp counter: %w", err)
	}
	return khz, nil
}

func measureTSC(ctx context.Context, baseline time.Duration) (int, error) {
	ticks0, nanos0, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	timer := time.NewTimer(baseline)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	ticks1, nanos1, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	khz := int(math.Round(float64(ticks1-ticks0) * 1e6 / float64(nanos1-nanos0)))
	if ticks1 <= ticks0 || !plausibleTSC(khz) {
		return 0, fmt.Errorf("%w: it seems to run at %d kHz", errNoTSC, khz)
	}
	return khz, nil
}

func plausibleTSC(khz int) bool { return khz > 100_000 && khz < 20_000_000 }

// sampleTSC reads the counter and the clock at one moment: of many tries the
// one that was disturbed least. The clock is the raw one, since the counter is
// not slewed by time synchronisation either.
func sampleTSC() (ticks uint64, nanos int64, err error) {
	var before, after unix.Timespec
	shortest := int64(math.MaxInt64)
	for range 50 {
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &before); err != nil {
			return 0, 0, fmt.Errorf("read clock: %w", err)
		}
		t := readTSC()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &after); err != nil {
			return 0, 0, fmt.Errorf("read clock: %w", err)
		}
		if took := after.Nano() - before.Nano(); took < shortest {
			shortest, ticks, nanos = took, t, before.Nano()+took/2
		}
	}
	return ticks, nanos, nil
}
