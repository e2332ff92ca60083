package forward

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// dialTimeout bounds how long a client waits for the guest to accept.
const dialTimeout = 30 * time.Second

// service is what answers on the host's ports by itself.
type service interface {
	// close frees the port, ends all that goes on and returns when all is gone.
	close()
	// traffic returns what went through it so far. It may be called at any time.
	traffic() Traffic
	// remind has open connections to the guest's address speak, for a firewall that knows
	// nothing of them any more. It may be called at any time.
	remind()
}

// meter counts what goes through a service, while it does.
type meter struct {
	open, total        atomic.Int64
	toGuest, fromGuest atomic.Int64
}

func (m *meter) begin() {
	m.open.Add(1)
	m.total.Add(1)
}

func (m *meter) end() { m.open.Add(-1) }

func (m *meter) traffic() Traffic {
	return Traffic{
		Open: int(m.open.Load()), Total: m.total.Load(),
		ToGuest: m.toGuest.Load(), FromGuest: m.fromGuest.Load(),
	}
}

// life is how long a service and the goroutines that work for it last.
type life struct {
	ctx    context.Context // ends when the service closes
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newLife() *life {
	l := &life{}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// blockSize is the size of a block: room for any datagram.
const blockSize = 64 << 10

// buffers are what bytes on their way need. All services of a Manager share
// them, and who waits for something to arrive holds none.
type buffers struct {
	blocks sync.Pool // of *[]byte
	pipes  pipes
}

func newBuffers() *buffers {
	return &buffers{blocks: sync.Pool{New: func() any {
		b := make([]byte, blockSize)
		return &b
	}}}
}

func (b *buffers) block() *[]byte         { return b.blocks.Get().(*[]byte) }
func (b *buffers) putBlock(block *[]byte) { b.blocks.Put(block) }

// close gives back what is kept for later.
func (b *buffers) close() { b.pipes.close() }
