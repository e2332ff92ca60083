package machine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/guestbin"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
)

// PruneOptions say what Prune spares.
type PruneOptions struct {
	DryRun     bool // only tell
	KeepImages bool // remove VMs only
	KeepVMs    bool // remove images only
}

// The kinds of what Prune removes.
const (
	PrunedVM       = "vm"
	PrunedImage    = "image"
	PrunedTemplate = "template" // it is made again when it is needed
	PrunedLeftover = "leftover" // what a killed build left, or a boot that will not be repeated, or was fetched
)

// Pruned is one thing that Prune removes.
type Pruned struct {
	Kind  string `json:"kind"`         // "vm", "image", "template" or "leftover"
	Name  string `json:"name"`         // a template's or leftover's is its path within the data directory
	ID    string `json:"id,omitempty"` // an image's
	Bytes int64  `json:"bytes"`        // what it takes of the host's disk
}

// Prune removes what is not in use: VMs that are stopped and that no living process has, then
// versions of images that no VM is made on, then what no image needs, and templates. Images of
// other data directories it leaves alone. It returns what was removed, and an error about what
// could not be, which does not stop the rest. While a VM's record cannot be read, all images
// count as in use.
func (h *Host) Prune(ctx context.Context, opts PruneOptions) ([]Pruned, error) {
	pruned := []Pruned{}
	var errs []error
	var gone []string // the VMs that are removed, or would be
	if !opts.KeepVMs {
		vms, err := h.pruneVMs(ctx, opts.DryRun)
		errs = append(errs, err)
		pruned = append(pruned, vms...)
		for _, vm := range vms {
			gone = append(gone, vm.Name)
		}
	}
	if !opts.KeepImages {
		images, err := h.pruneImages(ctx, gone, opts.DryRun)
		errs = append(errs, err)
		pruned = append(pruned, images...)
		templates, err := h.pruneTemplates(opts.DryRun)
		errs = append(errs, err)
		pruned = append(pruned, templates...)
	}
	return pruned, errors.Join(errs...)
}

// pruneVMs removes the VMs that do not run.
func (h *Host) pruneVMs(ctx context.Context, dryRun bool) ([]Pruned, error) {
	entries, err := h.store.List(ctx)
	if err != nil {
		return nil, err
	}
	var (
		pruned []Pruned
		errs   []error
	)
	for _, e := range entries {
		if e.Err != nil || e.Owned || e.Alive || e.Saved != "" {
			continue
		}
		size, err := diskusage.Of(e.Dir)
		if err == nil && !dryRun {
			err = h.pruneVM(ctx, e.Name)
		}
		switch {
		case errors.Is(err, store.ErrInUse), errors.Is(err, store.ErrNotFound):
			// Somebody was quicker, to start it or to remove it.
		case err != nil:
			errs = append(errs, fmt.Errorf("remove VM %q: %w", e.Name, err))
		default:
			pruned = append(pruned, Pruned{Kind: PrunedVM, Name: e.Name, Bytes: size})
		}
	}
	removed, err := h.layers.Clean(h.store.Disks, dryRun)
	for _, l := range removed {
		path := filepath.Join(filepath.Base(h.store.Layers()), l.Name)
		pruned = append(pruned, Pruned{Kind: PrunedLeftover, Name: path, Bytes: l.Bytes})
	}
	return pruned, errors.Join(append(errs, err)...)
}

// cleanLayers removes what no disk is an overlay on any more.
func (h *Host) cleanLayers() {
	if _, err := h.layers.Clean(h.store.Disks, false); err != nil {
		h.opts.Log.Warn("could not remove what no VM uses any more", "error", err)
	}
}

// pruneVM removes a VM unless it runs after all. The claim keeps others from starting it.
func (h *Host) pruneVM(ctx context.Context, name string) error {
	claim, err := h.store.Claim(ctx, name)
	if err != nil {
		return err
	}
	alive, err := claim.Alive(ctx)
	if err == nil && alive {
		err = store.ErrInUse
	}
	if err != nil {
		return errors.Join(err, claim.Release())
	}
	if err := claim.Remove(ctx); err != nil {
		return errors.Join(err, claim.Release())
	}
	return nil
}

// pruneImages removes the images that no VM is made on but those that are gone, and then what
// no image needs.
func (h *Host) pruneImages(ctx context.Context, gone []string, dryRun bool) ([]Pruned, error) {
	all, err := h.images.List()
	if err != nil {
		return nil, err
	}
	byName := map[string][]image.Version{}
	for _, v := range all {
		if !v.Shared {
			byName[v.Name] = append(byName[v.Name], v)
		}
	}
	var (
		doomed []image.Version
		pruned []Pruned
		errs   []error
	)
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		var unused []image.Version
		var told []Pruned
		if dryRun {
			unused, told, err = h.unusedImages(ctx, byName[name], gone, doomed)
		} else {
			// By now there may be a new VM by the name of one that is gone.
			err = h.images.Remove(ctx, name, func(versions []image.Version) (_ []image.Version, err error) {
				unused, told, err = h.unusedImages(ctx, versions, nil, nil)
				return unused, err
			})
		}
		switch {
		case errors.Is(err, image.ErrNotFound):
			// Somebody was quicker.
		case err != nil:
			errs = append(errs, err)
		default:
			doomed, pruned = append(doomed, unused...), append(pruned, told...)
		}
	}
	left, err := h.pruneLeftovers(ctx, doomed, dryRun)
	return append(pruned, left...), errors.Join(append(errs, err)...)
}

// unusedImages chooses, of the versions of an image, those that no VM is made on but those
// that are gone. It tells what removing them frees once those are removed that are doomed already.
func (h *Host) unusedImages(ctx context.Context, versions []image.Version, gone []string, doomed []image.Version) (unused []image.Version, told []Pruned, err error) {
	users, err := h.imageUsers(ctx, gone)
	if err == nil {
		err = users.unknown()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot remove image %q: %w", versions[0].Name, err)
	}
	freed, err := freedBy(doomed)
	if err != nil {
		return nil, nil, err
	}
	for _, v := range versions {
		if len(users.of(v.Image)) > 0 || len(users.copiesOf(v.Image)) > 0 || v.InUse() {
			continue
		}
		unused = append(unused, v)
		all, err := freedBy(append(slices.Clone(doomed), unused...))
		if err != nil {
			return nil, nil, err
		}
		told = append(told, Pruned{Kind: PrunedImage, Name: v.Name, ID: v.ID, Bytes: all - freed})
		freed = all
	}
	slices.SortFunc(told, func(a, b Pruned) int { return strings.Compare(a.ID, b.ID) })
	return unused, told, nil
}

// freedBy returns how many bytes removing images frees, of which several may share a kernel.
func freedBy(images []image.Version) (int64, error) {
	dirs := make([]string, 0, len(images))
	for _, v := range images {
		dirs = append(dirs, v.Dir)
	}
	usage, err := diskusage.Measure(dirs...)
	return usage.Bytes - usage.Shared, err
}

// pruneTemplates removes all templates that nobody is making.
func (h *Host) pruneTemplates(dryRun bool) ([]Pruned, error) {
	removed, err := h.templates.Prune(dryRun)
	pruned := make([]Pruned, 0, len(removed))
	for _, r := range removed {
		path := filepath.Join(filepath.Base(h.store.Cache()), templatesDir, r.Name)
		pruned = append(pruned, Pruned{Kind: PrunedTemplate, Name: path, Bytes: r.Bytes})
	}
	return pruned, err
}

// pruneLeftovers removes what no image needs but the doomed ones.
func (h *Host) pruneLeftovers(ctx context.Context, doomed []image.Version, dryRun bool) ([]Pruned, error) {
	guest, err := guestbin.Program()
	if err != nil {
		return nil, err
	}
	left, err := h.images.Clean(ctx, guest, doomed, dryRun)
	pruned := make([]Pruned, 0, len(left))
	for _, l := range left {
		path := filepath.Join(filepath.Base(h.store.Images()), l.Path)
		pruned = append(pruned, Pruned{Kind: PrunedLeftover, Name: path, Bytes: l.Bytes})
	}
	return pruned, err
}
