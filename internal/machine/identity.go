package machine

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/image"
)

// identity is what a guest is told of itself, on every new link.
type identity struct {
	imageEnv []string
	config   image.Config // what the image says of commands, and the VM over it

	mu sync.Mutex
	id guestapi.Identity
}

// give tells a guest that may have none yet.
func (i *identity) give(ctx context.Context, link *guestlink.Link) error {
	id := i.current()
	id.Time = time.Now()
	id.Entropy = make([]byte, 64)
	rand.Read(id.Entropy) // never fails
	return link.Configure(ctx, id)
}

// renew tells a guest that has one of what was changed.
func (i *identity) renew(ctx context.Context, link *guestlink.Link) error {
	return link.Configure(ctx, i.current())
}

func (i *identity) current() guestapi.Identity {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.id
}

// setEnv changes what the guest will be told.
func (i *identity) setEnv(env []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id.Env = slices.Concat(i.imageEnv, env)
}
