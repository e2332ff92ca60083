package network

import (
	"bytes"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// probe is a packet to be judged by rules without being sent. What is not set is not
// known, and rules that ask for it may match or not.
type probe struct {
	in, out  string // interfaces; "none" if there is none at that hook
	src, dst netip.Addr
	state    uint32 // of its connection
}

const noInterface = "none"

// fate is what rules do with a packet.
type fate int

const (
	goesOn fate = iota // to the next rule, or the policy
	accepted
	dropped
	returned // to the rule after the jump
)

// fateIn follows a packet through a chain. What rules do that cannot be judged is left
// out, and unsure then set.
func (p probe) fateIn(chain string, rules map[string][]*nftables.Rule, depth int) (f fate, unsure bool) {
	const deepest = 16 // as in the kernel
	if depth > deepest {
		return goesOn, true
	}
	for _, r := range rules[chain] {
		f, next, known := p.match(r)
		if !known {
			unsure = unsure || f != goesOn || next != nil
			continue
		}
		if next != nil {
			var u bool
			f, u = p.fateIn(next.Chain, rules, depth+1)
			unsure = unsure || u
			if f == returned || f == goesOn {
				f = goesOn
				if next.Kind == expr.VerdictGoto {
					f = returned
				}
			}
		}
		if f != goesOn {
			return f, unsure
		}
	}
	return goesOn, unsure
}

// match applies a rule and returns its verdict, or the chain where it sends the packet.
// If known is false, that is what the rule does if it matches.
func (p probe) match(r *nftables.Rule) (f fate, next *expr.Verdict, known bool) {
	registers := make(map[uint32][]byte) // nil: not known
	known = true
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			registers[e.Register] = p.meta(e.Key)
		case *expr.Payload:
			registers[e.DestRegister] = p.payload(e)
		case *expr.Ct:
			registers[e.Register] = nil
			if e.Key == expr.CtKeySTATE && p.state != 0 {
				registers[e.Register] = binaryutil.NativeEndian.PutUint32(p.state)
			}
		case *expr.Bitwise:
			registers[e.DestRegister] = masked(registers[e.SourceRegister], e)
		case *expr.Cmp:
			value := registers[e.Register]
			switch {
			case len(value) < len(e.Data) || (e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq):
				known = false
			case bytes.Equal(value[:len(e.Data)], e.Data) != (e.Op == expr.CmpOpEq):
				return goesOn, nil, true
			}
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			return dropped, nil, known
		case *expr.Verdict:
			switch e.Kind {
			case expr.VerdictAccept:
				return accepted, nil, known
			case expr.VerdictDrop:
				return dropped, nil, known
			case expr.VerdictReturn:
				return returned, nil, known
			case expr.VerdictJump, expr.VerdictGoto:
				return goesOn, e, known
			default:
				return goesOn, nil, known
			}
		case *expr.Lookup:
			if e.IsDestRegSet && e.DestRegister == 0 { // a map of verdicts
				return accepted, nil, false
			}
			registers[e.DestRegister] = nil
			known = false
		default:
			known = false
		}
	}
	return goesOn, nil, known
}

// meta is what the packet filter knows beside a packet's content.
func (p probe) meta(key expr.MetaKey) []byte {
	switch key {
	case expr.MetaKeyIIFNAME:
		return nameOf(p.in)
	case expr.MetaKeyOIFNAME:
		return nameOf(p.out)
	case expr.MetaKeyIIF:
		return indexOf(p.in)
	case expr.MetaKeyOIF:
		return indexOf(p.out)
	case expr.MetaKeyNFPROTO:
		return []byte{unix.NFPROTO_IPV4}
	case expr.MetaKeyPROTOCOL:
		return binaryutil.BigEndian.PutUint16(unix.ETH_P_IP)
	case expr.MetaKeyL4PROTO:
		return []byte{unix.IPPROTO_TCP}
	}
	return nil
}

func nameOf(link string) []byte {
	if link == "" {
		return nil
	}
	return ifnameKey(link)
}

// indexOf is known of the loopback interface, and of others that they are not it.
func indexOf(link string) []byte {
	const loopback, another = 1, 1<<32 - 1
	switch link {
	case "":
		return nil
	case "lo":
		return binaryutil.NativeEndian.PutUint32(loopback)
	}
	return binaryutil.NativeEndian.PutUint32(another)
}

// payload reads the packet's addresses and protocol.
func (p probe) payload(e *expr.Payload) []byte {
	if e.Base != expr.PayloadBaseNetworkHeader {
		return nil
	}
	var field []byte
	switch e.Offset {
	case 9:
		field = []byte{unix.IPPROTO_TCP}
	case 12:
		field = p.src.AsSlice()
	case 16:
		field = p.dst.AsSlice()
	}
	if int(e.Len) > len(field) {
		return nil
	}
	return field[:e.Len]
}

func masked(value []byte, e *expr.Bitwise) []byte {
	if len(value) == 0 || len(e.Mask) != len(value) || len(e.Xor) != len(value) {
		return nil
	}
	out := make([]byte, len(value))
	for i := range value {
		out[i] = value[i]&e.Mask[i] ^ e.Xor[i]
	}
	return out
}
