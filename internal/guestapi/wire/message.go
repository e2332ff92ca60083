package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// kind says what a message is about. Those with the number of a channel come first.
type kind byte

const (
	kindOpen    kind = 1 + iota // opens a channel of the type name, with a payload
	kindAccept                  // the channel is open
	kindReject                  // it is not, and the payload says why
	kindData                    // the payload is data
	kindErrData                 // the payload is data of the second stream
	kindWindow                  // so many more bytes may be sent: four, the highest first
	kindEnd                     // no more data comes
	kindClose                   // nothing more comes
	kindTell                    // the request name of a channel
	kindNotify                  // the request name of the session, which wants no answer
	kindAsk                     // one that wants an answer
	kindDone                    // the answer to the oldest one: it was done
	kindRefused                 // it was not
)

// message is what a session consists of. On the stream it is
//
//	length of all that follows   4 bytes, the highest first
//	kind                         1
//	number of the channel        4, the highest first
//	length of the name           1
//	name, payload
type message struct {
	kind    kind
	channel uint32
	name    string
	payload []byte
}

const (
	lengthSize = 4
	headSize   = lengthSize + 1 + 4 + 1
	// maxMessage bounds the length that a message says it has.
	maxMessage = guestapi.MaxPayload + 1<<10
)

// errMessage ends a session whose other end does not keep to it.
var errMessage = errors.New("malformed message")

// head encodes what comes before the payload.
func (m message) head() ([]byte, error) {
	length := headSize - lengthSize + len(m.name) + len(m.payload)
	if len(m.name) > math.MaxUint8 || length > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes", errMessage, length)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, headSize+len(m.name)), uint32(length))
	b = append(b, byte(m.kind))
	b = binary.BigEndian.AppendUint32(b, m.channel)
	b = append(b, byte(len(m.name)))
	return append(b, m.name...), nil
}

// readMessage reads one message, which owns its payload. It takes the room for that from allocate.
func readMessage(r io.Reader, allocate func(size int) []byte) (message, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return message{}, err
	}
	rest := int64(binary.BigEndian.Uint32(head[:])) - (headSize - lengthSize)
	nameLength := int64(head[headSize-1])
	if rest < nameLength || rest > maxMessage {
		return message{}, fmt.Errorf("%w: %d bytes with a name of %d", errMessage, rest, nameLength)
	}
	body := allocate(int(rest))
	if _, err := io.ReadFull(r, body); err != nil {
		return message{}, err
	}
	return message{
		kind: kind(head[lengthSize]), channel: binary.BigEndian.Uint32(head[lengthSize+1:]),
		name: string(body[:nameLength]), payload: body[nameLength:],
	}, nil
}
