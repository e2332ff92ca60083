package forward

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// countTimeout bounds how long the kernel is asked for its counts.
const countTimeout = 5 * time.Second

// Forwards returns what is exposed now, ordered by host port, with what has gone
// through so far.
func (m *Manager) Forwards() []Forward {
	m.mu.Lock()
	var mappings []Mapping
	var counted []int // the index of each mapping's forward
	forwards := m.sorted()
	list := make([]Forward, len(forwards))
	for i, f := range forwards {
		list[i] = f.Forward
		list[i].Traffic = f.Add(f.service.traffic())
		if f.flows {
			mappings = append(mappings, m.mapping(f))
			counted = append(counted, i)
		}
	}
	m.mu.Unlock()
	if len(mappings) == 0 {
		return list
	}
	ctx, cancel := context.WithTimeout(m.ctx, countTimeout)
	defer cancel()
	kernel, err := m.cfg.Table.Traffic(ctx, mappings...)
	if err != nil {
		if m.ctx.Err() == nil {
			m.log.Warn("could not read the kernel's counts of forwards", "error", err)
		}
		return list
	}
	for i, at := range counted {
		list[at].Traffic = list[at].Add(kernel[i])
	}
	return list
}

// sorted returns the forwards by host port. The caller holds mu.
func (m *Manager) sorted() []*forward {
	list := make([]*forward, 0, len(m.forwards))
	for _, f := range m.forwards {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *forward) int {
		return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Protocol, b.Protocol))
	})
	return list
}
