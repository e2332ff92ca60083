package guestlink

import (
	"context"
	"fmt"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
)

const (
	// clockRounds bounds how often the guest's clock is compared and stepped.
	clockRounds = 8
	// clockPrecision is how exactly it is set, unless the guest is too busy to answer so fast.
	clockPrecision = 5 * time.Millisecond
)

// SyncClock sets the guest's clock to this host's. The guest answered somewhen between the
// question and the answer, so its clock is known as exactly as that is short: it is asked again
// until that is clockPrecision, or clockRounds times.
func (l *Link) SyncClock(ctx context.Context) error {
	var step time.Duration
	for range clockRounds {
		asked := time.Now()
		reply, err := l.request(ctx, "set guest's clock", guestapi.RequestClock, guestapi.Encode(&guestapi.Clock{Step: step}))
		if err != nil {
			return err
		}
		unsure := time.Since(asked) / 2
		var guest guestapi.Clock
		if err := guestapi.Decode(reply, &guest); err != nil {
			return fmt.Errorf("read guest's clock: %w", err)
		}
		step = asked.Add(unsure).Sub(guest.Time)
		wrong := step.Abs() > max(unsure, clockPrecision)
		if !wrong && unsure <= clockPrecision {
			return nil
		}
		if !wrong {
			step = 0 // it may be right
		}
	}
	return nil
}
