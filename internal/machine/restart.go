package machine

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// RestartPolicy says whether a VM's owner starts the main process again that has ended, or a VM
// that has ended without being asked to: one of the following, or what OnFailure returns. The zero
// value is RestartNo.
type RestartPolicy string

// The restart policies.
const (
	RestartNo        RestartPolicy = "no"
	RestartOnFailure RestartPolicy = "on-failure" // if its exit code is not 0
	RestartAlways    RestartPolicy = "always"
	// RestartUnlessStopped is what RestartAlways is: a VM that somebody stopped stays so either way.
	RestartUnlessStopped RestartPolicy = "unless-stopped"
)

// OnFailure is RestartOnFailure, but at most so many times.
func OnFailure(limit int) RestartPolicy {
	return RestartOnFailure + RestartPolicy(limitSeparator+strconv.Itoa(limit))
}

const limitSeparator = ":"

// parse returns the policy without its limit, which is 0 if it has none.
func (p RestartPolicy) parse() (kind RestartPolicy, limit int, err error) {
	name, number, limited := strings.Cut(string(p), limitSeparator)
	kind = RestartPolicy(name)
	switch kind {
	case "", RestartNo, RestartAlways, RestartUnlessStopped:
	case RestartOnFailure:
		if !limited {
			return kind, 0, nil
		}
		if limit, err = strconv.Atoi(number); err == nil && limit > 0 {
			return kind, limit, nil
		}
		return "", 0, fmt.Errorf("%w: restart policy %q: what is behind the colon must be a number of restarts, at least 1", ErrInvalidOption, p)
	default:
		limited = true
	}
	if limited {
		return "", 0, fmt.Errorf("%w: restart policy must be %s, %s, %s:N, %s or %s, not %q", ErrInvalidOption,
			RestartNo, RestartOnFailure, RestartOnFailure, RestartAlways, RestartUnlessStopped, p)
	}
	return kind, 0, nil
}

// again tells whether what has ended is to be started again that was so many times before. A policy
// that makes no sense is that of no restart: it is checked before.
func (p RestartPolicy) again(failed bool, restarts int) bool {
	kind, limit, err := p.parse()
	switch {
	case err != nil:
		return false
	case kind == RestartOnFailure:
		return failed && (limit == 0 || restarts < limit)
	}
	return kind == RestartAlways || kind == RestartUnlessStopped
}

const (
	// The pause before a restart grows from the first to the last of these, twofold each time.
	firstRestartPause = 100 * time.Millisecond
	lastRestartPause  = time.Minute
	// soundRun is how long something must have run for the pauses to begin anew.
	soundRun = 10 * time.Second
)

// backOff is how long the last pause before a restart was. Its zero value is that of none.
type backOff time.Duration

// next returns the pause before the restart of what ran for so long.
func (b *backOff) next(ran time.Duration) time.Duration {
	pause := min(2*time.Duration(*b), lastRestartPause)
	if ran >= soundRun || pause == 0 {
		pause = firstRestartPause
	}
	*b = backOff(pause)
	return pause
}
