package guestapi

import (
	"math"
	"net/netip"
	"time"
)

func (f *Failure) fields(c *codec) {
	text(c, &f.Error)
	text(c, &f.Kind)
}

func (k *Clock) fields(c *codec) {
	c.time(&k.Time)
	step := uint64(k.Step)
	c.number(&step)
	k.Step = time.Duration(step)
}

func (id *Identity) fields(c *codec) {
	text(c, &id.Hostname)
	c.time(&id.Time)
	c.bytes(&id.Entropy)
	connected := id.Network != nil
	c.flag(&connected)
	if connected {
		if c.decodes {
			id.Network = &Network{}
		}
		id.Network.fields(c)
	}
	c.bytes(&id.HostKey)
	c.bytes(&id.AuthorizedKeys)
	text(c, &id.MachineID)
	c.list(&id.Env)
	c.flag(&id.GrowRoot)
}

func (n *Network) fields(c *codec) {
	c.bytes((*[]byte)(&n.MAC))
	value(c, &n.Address)
	value(c, &n.Gateway)
	servers := len(n.Nameservers)
	c.count(&servers, countSize)
	if c.decodes && servers > 0 {
		n.Nameservers = make([]netip.Addr, servers)
	}
	for i := range n.Nameservers {
		value(c, &n.Nameservers[i])
	}
	c.list(&n.Search)
}

func (e *Exec) fields(c *codec) {
	c.list(&e.Argv)
	text(c, &e.Dir)
	c.list(&e.Env)
	text(c, &e.User)
	c.flag(&e.Stdin)
	terminal := e.Terminal != nil
	c.flag(&terminal)
	if terminal {
		if c.decodes {
			e.Terminal = &Terminal{}
		}
		text(c, &e.Terminal.Term)
		c.integer(&e.Terminal.Columns)
		c.integer(&e.Terminal.Rows)
	}
	c.flag(&e.Detach)
	c.flag(&e.PowerOff)
}

func (m *Main) fields(c *codec) {
	text(c, &m.ID)
	text(c, &m.Replaces)
	m.Exec.fields(c)
}

func (m *MainState) fields(c *codec) {
	text(c, &m.ID)
	c.integer(&m.PID)
	c.time(&m.Started)
	c.time(&m.Ended)
	c.integer(&m.Status.Code)
	text(c, &m.Status.Signal)
}

func (m *MainSignal) fields(c *codec) { c.integer(&m.Number) }

func (f *Files) fields(c *codec) {
	text(c, &f.Op)
	text(c, &f.Path)
	mode := uint64(f.Mode)
	c.number(&mode)
	if f.Mode = uint32(mode); mode > math.MaxUint32 {
		c.fail()
	}
	c.flag(&f.Follow)
}

func (f *Folder) fields(c *codec) {
	text(c, &f.Path)
	c.flag(&f.ReadOnly)
}

func (l *Listeners) fields(c *codec) {
	c.ports(&l.TCP)
	c.ports(&l.UDP)
}

func (c *codec) ports(m *map[uint16]Scope) {
	n := len(*m)
	c.count(&n, numberSize+countSize)
	port := func(p uint16, s Scope) {
		u := uint64(p)
		c.number(&u)
		text(c, &s)
		if u > math.MaxUint16 {
			c.fail()
		} else if c.decodes && c.err == nil {
			(*m)[uint16(u)] = s
		}
	}
	if c.decodes {
		*m = make(map[uint16]Scope)
		for range n {
			port(0, "")
		}
		return
	}
	for p, s := range *m {
		port(p, s)
	}
}
