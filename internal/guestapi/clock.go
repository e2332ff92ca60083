package guestapi

import (
	"encoding/binary"
	"errors"
	"time"
)

// Clock is what the guest's clock says, in a reply, or how far it is to be stepped, in a request:
// two numbers of nanoseconds, the first counted from 1970. There is no text in it, since a clock
// that has to be read exactly is read fast.
type Clock struct {
	Time time.Time
	Step time.Duration
}

const clockSize = 16

var errClock = errors.New("not a clock's time and step")

// Encode encodes the clock. A time that is not known, the zero one, is so again when it is decoded.
func (c Clock) Encode() []byte {
	var nanoseconds int64
	if !c.Time.IsZero() {
		nanoseconds = c.Time.UnixNano()
	}
	b := binary.BigEndian.AppendUint64(make([]byte, 0, clockSize), uint64(nanoseconds))
	return binary.BigEndian.AppendUint64(b, uint64(c.Step))
}

// DecodeClock decodes what Encode encoded.
func DecodeClock(b []byte) (Clock, error) {
	if len(b) != clockSize {
		return Clock{}, errClock
	}
	c := Clock{Step: time.Duration(binary.BigEndian.Uint64(b[8:]))}
	if nanoseconds := int64(binary.BigEndian.Uint64(b)); nanoseconds != 0 {
		c.Time = time.Unix(0, nanoseconds)
	}
	return c, nil
}
