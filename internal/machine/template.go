package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/qcow2"
	"github.com/smolvm/smolvm/internal/saved"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// Origin is what a run of a VM began with.
type Origin string

// The origins.
const (
	FromBoot     Origin = "boot"
	FromTemplate Origin = "template" // a guest that had booted before, in another machine
	FromSaved    Origin = "saved"    // what was running when the VM was suspended, or copied
)

const (
	// templateFormat changes when templates of before must not be used any more.
	templateFormat = "smolvm template 2"
	// templateTimeout is how long a guest may take to answer that goes on from a template: a
	// tenth of a second on an idle host.
	templateTimeout = 30 * time.Second
	// spareSpace is what must be left of the filesystem when a template is made, in bytes.
	spareSpace = 256 << 20
	// templateVM is whose the interface is that a template is made with.
	templateVM = "template"
)

// Why a start does not use a template.
var (
	errColdBoot  = errors.New("asked for")
	errOwnDisk   = errors.New("the VM has a disk that was written to before")
	errMoreDisks = errors.New("the VM has more disks than one, which its guest looks at when it boots")
	errNoSpace   = errors.New("too little space is left for one")
)

// origin returns the template that a VM starts from, whose config is given, or why it boots
// instead. The caller owes a Close.
func (h *Host) origin(ctx context.Context, rec store.Record, img *image.Image, cfg vmm.Config) (_ *saved.Machine, key string, err error) {
	switch {
	case h.opts.ColdBoot:
		return nil, "", errColdBoot
	case len(rec.Disks) > 0:
		return nil, "", errMoreDisks
	case rec.Copied || !rec.Started.IsZero():
		return nil, "", errOwnDisk
	}
	if key, err = h.templateKey(ctx, rec, img, cfg); err != nil {
		return nil, "", err
	}
	progress := func(stage string) {
		if h.opts.Progress != nil {
			h.opts.Progress(image.Progress{Stage: stage})
		}
	}
	waits := func() { progress("wait for another process, which boots a template") }
	t, err := h.templates.Get(ctx, key, waits, func(d *saved.Draft) error {
		progress("boot a template for VMs of this kind")
		return h.makeTemplate(ctx, d, img, rec.DiskSize, cfg)
	})
	return t, key, err
}

// templateKey names all that a template depends on.
func (h *Host) templateKey(ctx context.Context, rec store.Record, img *image.Image, cfg vmm.Config) (string, error) {
	shape, err := h.driver.Shape(ctx, cfg)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	// The initial filesystem is called by what is in it, guest program and modules.
	fmt.Fprintf(sum, "%s\n%s\n%s\n%d\n%v\n", templateFormat, img.ID, filepath.Base(cfg.Initrd), rec.DiskSize, shape)
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// makeTemplate boots a machine until its guest waits to be told who it is, and saves it.
func (h *Host) makeTemplate(ctx context.Context, d *saved.Draft, img *image.Image, diskSize int64, cfg vmm.Config) (err error) {
	if err := enoughSpace(d.Dir, int64(cfg.MemoryMiB)<<20); err != nil {
		return err
	}
	disk := qcow2.Overlay{Size: diskSize, Backing: img.RootFS, Format: qcow2.Raw}
	if err := disk.Create(d.Disk); err != nil {
		return err
	}
	cfg.Dir, cfg.Disk = d.Dir, d.Disk
	cfg.Lock, cfg.Detached, cfg.Network.MAC, cfg.Network.NoEgress = nil, false, nil, true
	if cfg.Network.Mode == vmm.NetworkTAP {
		// What the guest agrees upon with this interface is what it expects of the next one.
		tap, err := h.network.Attach(ctx, network.Attachment{VM: templateVM})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tap.Close()) }()
		cfg.Network.TAP = tap.File()
	}
	m, err := h.driver.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Kill()) }()
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := h.rest(ctx, m); err != nil {
		return errors.Join(m.Err(), err) // if it has ended, that explains more
	}
	return m.Save(ctx, vmm.Destination{Memory: d.Memory, State: d.State})
}

// rest waits until the guest of a machine has booted, and has it get ready to be copied.
func (h *Host) rest(ctx context.Context, m vmm.Machine) error {
	conn, err := m.Channel(ctx)
	if err != nil {
		return err
	}
	link, err := guestlink.Dial(ctx, conn, h.opts.Log)
	if err != nil {
		return err
	}
	err = rehearse(ctx, link)
	if err == nil {
		err = putToRest(ctx, link)
	}
	if err = errors.Join(err, link.Close()); err != nil {
		return err
	}
	// Else the clones would have the end of this session before them.
	if conn, err = m.Channel(ctx); err != nil {
		return err
	}
	return guestlink.AwaitIdle(ctx, conn)
}

// rehearse runs a command and watches the listeners, so that a guest finds in memory what it
// needs for that.
func rehearse(ctx context.Context, link *guestlink.Link) error {
	// The kernel loads modules for the first report: saved before, each clone would go on with that.
	if _, ok := <-link.Listeners(ctx); !ok {
		return fmt.Errorf("wait for the guest's listeners: %w", errors.Join(ctx.Err(), link.Err()))
	}
	p, err := link.Start(ctx, guestapi.Exec{Argv: []string{"sh", "-c", "exec true"}}, nil, io.Discard, io.Discard)
	if err == nil {
		_, err = p.Wait()
	}
	var refused *guestlink.RefusedError
	if errors.As(err, &refused) {
		return nil // an image without a shell has no use for it
	}
	return err
}

// putToRest has the guest rehearse with an identity that means nothing: addresses for
// documentation, and keys that are used nowhere.
func putToRest(ctx context.Context, link *guestlink.Link) error {
	private, public, err := newKey("")
	if err != nil {
		return err
	}
	return link.Rest(ctx, guestapi.Identity{
		Hostname: "localhost", Time: time.Now(), Env: []string{"PATH="}, HostKey: private, AuthorizedKeys: public,
		Network: &guestapi.Network{
			Address: netip.MustParsePrefix("192.0.2.2/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
			MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		},
	})
}

// enoughSpace tells whether size bytes can be written to dir without leaving others none.
func enoughSpace(dir string, size int64) error {
	free, err := diskusage.Free(dir)
	if err != nil {
		return err
	}
	if free < size+spareSpace {
		return fmt.Errorf("%w: %d MiB, not %d", errNoSpace, free>>20, (size+spareSpace)>>20)
	}
	return nil
}

// replaceDisk gives a VM that never ran a copy of the template's disk, which holds no more than
// what the guest wrote when it booted.
func replaceDisk(path string, t *saved.Machine) (err error) {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("copy template's disk: %w", err)
	}
	info, err := t.Disk.Stat()
	if err == nil {
		_, err = io.Copy(f, io.NewSectionReader(t.Disk, 0, info.Size()))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return fmt.Errorf("copy template's disk: %w", errors.Join(err, os.Remove(next)))
	}
	return nil
}
