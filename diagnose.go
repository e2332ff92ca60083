package smolvm

import (
	"context"

	"github.com/smolvm/smolvm/internal/control"
	"github.com/smolvm/smolvm/internal/machine"
)

// Check is one thing that [Diagnose] found out about this host.
type Check = machine.Check

// Verdict is what came of a [Check].
type Verdict = machine.Verdict

// The verdicts.
const (
	OK      = machine.VerdictOK
	Warning = machine.VerdictWarning // VMs run, but slower or less safe than they could
	Broken  = machine.VerdictBroken  // VMs do not run
)

// Diagnose finds out what works on this host, what does not, and what to do about
// it. It may take some seconds: it tries things.
func Diagnose(ctx context.Context, opts ...Option) ([]Check, error) {
	return withHost(opts, func(h *control.Host) ([]Check, error) { return h.Diagnose(ctx), nil })
}
