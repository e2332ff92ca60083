package machine

import (
	"strings"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/store"
)

// firstCommonPort is the first host port that is taken for an exposed one of the same number: those
// below are for who asks for them.
const firstCommonPort = 1024

// published are the forwards that a VM begins with: those that are asked for, and with all those of
// the ports that its image names. Skipped are ports of these that cannot be forwarded.
func published(asked []forward.Request, all bool, exposed []string) (forwards []store.Forward, skipped []string) {
	for _, req := range asked {
		forwards = append(forwards, newForward(req))
	}
	if !all {
		return forwards, nil
	}
	for _, text := range exposed {
		spec, err := forward.ParseSpec(text)
		if err != nil || spec.HostPort != 0 {
			skipped = append(skipped, text)
			continue
		}
		for _, req := range spec.Requests() {
			if isAsked(asked, req) {
				continue
			}
			if req.GuestPort >= firstCommonPort {
				req.HostPort = req.GuestPort
			}
			forwards = append(forwards, newForward(req))
		}
	}
	return forwards, skipped
}

// isAsked tells whether a guest port is asked for anyway.
func isAsked(asked []forward.Request, req forward.Request) bool {
	for _, a := range asked {
		if a.GuestPort == req.GuestPort && newForward(a).Protocol == newForward(req).Protocol {
			return true
		}
	}
	return false
}

// newForward is a forward that was not exposed yet.
func newForward(req forward.Request) store.Forward {
	f := remembered(nil, forward.Pair{Protocol: req.Protocol, GuestPort: req.GuestPort}, req)[0]
	if f.Protocol == "" {
		f.Protocol = string(forward.TCP)
	}
	return f
}

// publish notes what the first start is to expose.
func (v *VM) publish(spec Spec, exposed []string) error {
	forwards, skipped := published(spec.Publish, spec.PublishAll, exposed)
	if len(skipped) > 0 {
		v.host.opts.Log.Warn("not all ports that the image names can be published", "vm", spec.Name, "skipped", strings.Join(skipped, ", "))
	}
	if len(forwards) == 0 {
		return nil
	}
	return v.claim.UpdateForwards(func([]store.Forward) []store.Forward { return forwards })
}
