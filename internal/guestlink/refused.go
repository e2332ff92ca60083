package guestlink

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// maxReason is how much of what a guest says is kept, in bytes.
const maxReason = 4 << 10

// RefusedError is the guest's refusal of a request. To errors.Is it is, where the guest
// says so, fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, syscall.EISDIR, syscall.ENOTDIR
// or syscall.ENOSPC.
type RefusedError struct {
	Op      string // what was asked
	Failure guestapi.Failure
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: guest: %s", e.Op, e.Failure.Error)
}

// Is reports whether the guest's reason is target.
func (e *RefusedError) Is(target error) bool {
	switch e.Failure.Kind {
	case guestapi.KindNotExist:
		return target == fs.ErrNotExist
	case guestapi.KindExist:
		return target == fs.ErrExist
	case guestapi.KindPermission:
		return target == fs.ErrPermission
	case guestapi.KindIsDirectory:
		return target == syscall.EISDIR
	case guestapi.KindNotDirectory:
		return target == syscall.ENOTDIR
	case guestapi.KindNoSpace:
		return target == syscall.ENOSPC
	}
	return false
}

// refused makes an error of a guest's refusal.
func refused(op string, payload []byte) error {
	e := &RefusedError{Op: op}
	if err := guestapi.Decode(payload, &e.Failure); err != nil || e.Failure.Error == "" {
		e.Failure = guestapi.Failure{Error: "refused without a reason"}
	}
	e.Failure.Error = printable(e.Failure.Error)
	return e
}

// printable makes what a guest says fit to be read by people, in a terminal: of bounded
// length, and with nothing in it that the terminal would obey.
func printable(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason] + "..."
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}
