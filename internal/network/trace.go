package network

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Kinds of step that a trace tells of.
const (
	tracePolicy = 1
	traceRule   = 3
)

// traceStep is one step of a packet through nftables.
type traceStep struct {
	id     uint32 // of the packet
	family byte
	table  string
	chain  string
	handle uint64 // of the rule, 0 if it was the chain's policy
	drops  bool
}

// parseTrace reads a message about a traced packet.
func parseTrace(m message) (traceStep, bool) {
	if m.kind != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE || len(m.data) < sizeofNfgenmsg {
		return traceStep{}, false
	}
	step := traceStep{family: m.data[0]}
	for kind, value := range attributes(m.data[sizeofNfgenmsg:]) {
		switch kind {
		case unix.NFTA_TRACE_TABLE:
			step.table = text(value)
		case unix.NFTA_TRACE_CHAIN:
			step.chain = text(value)
		case unix.NFTA_TRACE_RULE_HANDLE:
			step.handle = bigEndian(value)
		case unix.NFTA_TRACE_ID:
			step.id = uint32(bigEndian(value))
		}
	}
	attrs := m.data[sizeofNfgenmsg:]
	switch bigEndian(attribute(attrs, unix.NFTA_TRACE_TYPE)) {
	case traceRule:
		code := attribute(attribute(attrs, unix.NFTA_TRACE_VERDICT), unix.NFTA_VERDICT_CODE)
		step.drops = len(code) == 4 && isDrop(int32(binary.BigEndian.Uint32(code)))
	case tracePolicy:
		code := attribute(attrs, unix.NFTA_TRACE_POLICY)
		step.drops = len(code) == 4 && isDrop(int32(binary.BigEndian.Uint32(code)))
	}
	return step, step.table != ""
}

// isDrop tells whether a verdict ends a packet. A rejection is one too. Verdicts below
// zero go on within nftables; the upper half of others is an argument.
func isDrop(verdict int32) bool {
	const dropped, kind = 0, 0xff
	return verdict >= 0 && verdict&kind == dropped
}
