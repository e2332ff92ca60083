package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
)

// look brings everything into order under the lock that all processes share.
func (r *reconciler) look(ctx context.Context, h *Host) error {
	err := h.locked(ctx, func(s *state) error {
		r.mu.Lock()
		r.pending, r.interests.corpses = 0, nil
		kept := r.kept
		r.mu.Unlock()
		h.log.Debug("looking at the network")
		mended, err := h.mend(s, kept, func(i *Interface) { r.lose(i) })
		if len(mended) > 0 {
			h.log.Warn("others changed what VMs need of the network, mended it", "what", mended)
			r.mu.Lock()
			r.notice(wayEvent)
			r.mu.Unlock()
		}
		if err != nil {
			return err
		}
		return r.remember()
	})
	if err != nil {
		return fmt.Errorf("mend network: %w", err)
	}
	return nil
}

// mend brings the kept interfaces and what all share into order: first what the guards
// know guests by, then the guards, then what relies on them.
func (h *Host) mend(s *state, kept []*Interface, lose func(*Interface)) (mended []string, err error) {
	var errs []error
	each := func(step func(*Interface, netlink.Link) ([]string, error)) {
		kept = slices.DeleteFunc(slices.Clone(kept), func(i *Interface) bool {
			link, err := netlink.LinkByIndex(i.Index)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				lose(i)
				return true
			}
			var done []string
			if err == nil {
				done, err = step(i, link)
			}
			for _, what := range done {
				mended = append(mended, i.Name+": "+what)
			}
			if err != nil {
				errs = append(errs, err)
			}
			return err != nil
		})
	}
	each((*Interface).mark)
	if _, err := h.reap(s); err != nil {
		return mended, errors.Join(append(errs, err)...)
	}
	each((*Interface).arrange)
	return mended, errors.Join(errs...)
}

// remember takes down what to compare and listen for until the next look.
func (r *reconciler) remember() error {
	var found []setting
	var names map[int]string
	r.mu.Lock()
	egress := r.interests.egress
	r.mu.Unlock()
	if egress {
		var err error
		if names, err = uplinks(); err != nil {
			return err
		}
		paths := []string{ipv4Conf("all", "forwarding")}
		for _, name := range slices.Sorted(maps.Values(names)) {
			paths = append(paths, ipv4Conf(name, "forwarding"))
		}
		for _, path := range paths {
			value, err := readSetting(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // went this moment
			}
			if err != nil {
				return err
			}
			found = append(found, setting{path, value})
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.kept {
		found = append(found, tapSettings(i.Name, i.egress)...)
	}
	r.settings, r.interests.uplinks = found, names
	return nil
}
