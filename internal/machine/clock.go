package machine

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestlink"
)

// keepClock sets the guest's clock whenever the guest channel comes up, and when the host's
// clock was set or the host has slept, until the channel ends. In between it is the guest's own:
// programs in it may set it.
func keepClock(channel *guestlink.Channel, log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		for state := range channel.States(ctx) {
			if state.Up {
				syncClock(ctx, channel, log)
			}
		}
	}()
	go func() {
		err := watchClock(ctx, func() { syncClock(ctx, channel, log) })
		if err != nil {
			log.Warn("the guest's clock will be late when the host has slept", "error", err)
		}
	}()
}

func syncClock(ctx context.Context, channel *guestlink.Channel, log *slog.Logger) {
	// A channel that ends, or is lost again, says so itself.
	if err := channel.SyncClock(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, guestlink.ErrLost) {
		log.Warn("could not set the guest's clock", "error", err)
	}
}

// watchClock calls changed whenever the host's clock has been set or the host has slept, until
// ctx ends.
func watchClock(ctx context.Context, changed func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	timer := os.NewFile(uintptr(fd), "clock")
	defer timer.Close() //nolint:errcheck // only read from
	defer context.AfterFunc(ctx, func() { timer.Close() })()
	// It never goes off, but is cancelled when the clock jumps.
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err != nil {
		return os.NewSyscallError("timerfd_settime", err)
	}
	for buf := make([]byte, 8); ; {
		_, err := timer.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECANCELED):
			changed()
		default:
			return err
		}
	}
}
