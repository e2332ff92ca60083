package machine

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The real-time signals that programs may use, as the C library counts them: it keeps the kernel's
// first two to itself.
const (
	firstRealTime = 34
	lastRealTime  = 64
)

// defaultStopSignal asks a main process to end, unless its image or its user names another.
const defaultStopSignal = syscall.SIGTERM

// ParseSignal reads a signal: a name, with or without SIG, such as "SIGQUIT", "term" or
// "SIGRTMIN+3", or a number from 1 to 64. It fails with ErrInvalidOption.
func ParseSignal(text string) (syscall.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	number, err := strconv.Atoi(name)
	if err != nil {
		number = namedSignal(name)
	}
	if number < 1 || number > lastRealTime {
		return 0, fmt.Errorf("%w: %q is no signal: it is a name, such as SIGTERM or SIGRTMIN+3, or a number from 1 to %d", ErrInvalidOption, text, lastRealTime)
	}
	return syscall.Signal(number), nil
}

// namedSignal is the number of a signal whose name is given without SIG; 0: there is none.
func namedSignal(name string) int {
	for base, from := range map[string]int{"RTMIN": firstRealTime, "RTMAX": lastRealTime} {
		step, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		if step == "" {
			return from
		}
		// The sign belongs to it.
		n, err := strconv.Atoi(step)
		if err != nil || step[0] != '+' && step[0] != '-' || from+n < firstRealTime || from+n > lastRealTime {
			return 0
		}
		return from + n
	}
	return int(unix.SignalNum("SIG" + name))
}

// signalName is a signal as ParseSignal reads it.
func signalName(sig syscall.Signal) string {
	switch name := unix.SignalName(sig); {
	case name != "":
		return name
	case sig == firstRealTime:
		return "SIGRTMIN"
	case sig > firstRealTime && sig <= lastRealTime:
		return fmt.Sprintf("SIGRTMIN+%d", int(sig)-firstRealTime)
	}
	return strconv.Itoa(int(sig))
}
