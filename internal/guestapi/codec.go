package guestapi

import (
	"encoding"
	"encoding/binary"
	"errors"
	"time"
)

// Payload is what a request or the opening of a channel carries. Its fields go one after the other,
// by a method that encodes and decodes them alike. That is little code, and every copy of a guest
// has its code translated anew: what reads any structure by reflection is much.
type Payload interface{ fields(*codec) }

// errPayload says that bytes are not what was encoded.
var errPayload = errors.New("malformed payload")

// Encode encodes a payload.
func Encode(p Payload) []byte {
	c := &codec{}
	p.fields(c)
	return c.b
}

// Decode decodes into p, which is zero before, what Encode encoded.
func Decode(b []byte, p Payload) error {
	c := &codec{b: b, decodes: true}
	p.fields(c)
	if len(c.b) > 0 {
		c.fail()
	}
	return c.err
}

// codec encodes fields, appending them to b, or decodes them, taking them from there. After an
// error it decodes nothing but zeros.
type codec struct {
	decodes bool
	b       []byte
	err     error
}

func (c *codec) fail() { c.b, c.err = nil, errPayload }

// take takes n bytes from those that are left.
func (c *codec) take(n int) []byte {
	if n > len(c.b) {
		c.fail()
		return nil
	}
	taken := c.b[:n:n]
	c.b = c.b[n:]
	return taken
}

const (
	numberSize = 8
	countSize  = 4
)

func (c *codec) number(n *uint64) {
	if !c.decodes {
		c.b = binary.BigEndian.AppendUint64(c.b, *n)
	} else if b := c.take(numberSize); b != nil {
		*n = binary.BigEndian.Uint64(b)
	}
}

// integer is a number that an int holds.
func (c *codec) integer(n *int) {
	u := uint64(*n)
	c.number(&u)
	if *n = int(u); c.decodes && uint64(*n) != u {
		c.fail()
	}
}

// count is a number of things that take at least so many bytes each.
func (c *codec) count(n *int, each int) {
	if !c.decodes {
		c.b = binary.BigEndian.AppendUint32(c.b, uint32(*n))
		return
	}
	*n = 0
	if b := c.take(countSize); b != nil {
		*n = int(binary.BigEndian.Uint32(b))
	}
	if *n > len(c.b)/each {
		*n = 0
		c.fail()
	}
}

func (c *codec) flag(f *bool) {
	var u uint64
	if *f {
		u = 1
	}
	c.number(&u)
	if u > 1 {
		c.fail()
	}
	*f = u == 1
}

// time is the zero one, or one that counts in nanoseconds from 1970.
func (c *codec) time(t *time.Time) {
	known := !t.IsZero()
	c.flag(&known)
	if !known {
		return
	}
	u := uint64(t.UnixNano())
	c.number(&u)
	*t = time.Unix(0, int64(u))
}

func (c *codec) bytes(p *[]byte) {
	n := len(*p)
	c.count(&n, 1)
	if !c.decodes {
		c.b = append(c.b, *p...)
	} else if n > 0 {
		*p = c.take(n)
	}
}

func (c *codec) list(l *[]string) {
	n := len(*l)
	c.count(&n, countSize)
	if c.decodes && n > 0 {
		*l = make([]string, n)
	}
	for i := range *l {
		text(c, &(*l)[i])
	}
}

// text is a string of any kind.
func text[T ~string](c *codec, s *T) {
	n := len(*s)
	c.count(&n, 1)
	if c.decodes {
		*s = T(c.take(n))
	} else {
		c.b = append(c.b, *s...)
	}
}

// binaryValue is what has an encoding of its own.
type binaryValue[T any] interface {
	*T
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

func value[T any, P binaryValue[T]](c *codec, v P) {
	var b []byte
	if !c.decodes {
		b, _ = v.AppendBinary(nil) // addresses: cannot fail
	}
	c.bytes(&b)
	if c.decodes && c.err == nil && v.UnmarshalBinary(b) != nil {
		c.fail()
	}
}
