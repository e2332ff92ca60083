package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/saved"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// ErrCannotResume is wrapped by errors about a VM that cannot go on from where it was suspended or
// copied.
var ErrCannotResume = errors.New("cannot go on from where the VM was")

// Suspend saves the VM's memory to its directory and ends it. The next start goes on from there.
func (v *VM) Suspend(ctx context.Context) error {
	const op = "suspend VM"
	v.life.Lock()
	defer v.life.Unlock()
	r, err := v.running(ctx, op)
	if err != nil {
		if info, infoErr := v.Info(ctx); infoErr == nil && info.Status == StatusSuspended {
			return nil
		}
		return err
	}
	v.mu.Lock()
	claim := v.claim
	v.mu.Unlock()
	if err := v.suspend(ctx, claim, r); err != nil {
		return v.unlessStopped(ctx, op, fmt.Errorf("cannot %s: %w", op, err))
	}
	return v.disown()
}

func (v *VM) suspend(ctx context.Context, claim *store.Claim, r *run) (err error) {
	name := store.NewSavedDir()
	d := saved.NewDraft(filepath.Join(claim.Dir(), name))
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		return err
	}
	letGo, err := r.hold(claim)
	if err != nil {
		return errors.Join(err, os.Remove(d.Dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(d.Dir), letGo(context.WithoutCancel(ctx)))
		}
	}()
	// It stands still from the beginning: it is not to go on here.
	if err := r.machine.Pause(ctx); err != nil {
		return err
	}
	if err := v.save(ctx, claim, r, d, nil); err != nil {
		return err
	}
	if err := d.Seal(); err != nil {
		return err
	}
	if err := makeLast(ctx, d.Dir); err != nil {
		return err
	}
	if err := claim.Update(func(rec *store.Record) { rec.Saved = name }); err != nil {
		return err
	}
	// From here on it is suspended, whatever happens. Its forwards end when it is gone: a guest that
	// stands still confirms no end of a connection.
	if err := v.kill(r); err != nil {
		r.log.Warn("could not end all of a VM that is suspended", "error", err)
	}
	return nil
}

// makeLast has a saved machine be of use after the host was down, too.
func makeLast(ctx context.Context, dir string) error {
	if err := saved.Fingerprint(ctx, dir); err != nil {
		return err
	}
	return saved.Sync(dir)
}

// goOn starts the machine of a VM from where it was suspended or copied.
func (v *VM) goOn(ctx context.Context, claim *store.Claim, r *run, name string, cfg vmm.Config) error {
	dir := filepath.Join(claim.Dir(), name)
	s, err := saved.Open(ctx, dir)
	if err != nil {
		return cannotResume(claim, err)
	}
	defer s.Close() //nolint:errcheck // never written to
	shape, err := v.host.shape(ctx, cfg)
	if err != nil {
		return err
	}
	if err := s.Shape.Fits(shape); err != nil {
		return cannotResume(claim, err)
	}
	if cfg.From, err = s.From(); err != nil {
		return err
	}
	// Once the guest runs, its disk does not fit to what was saved any more.
	cfg.From.Restored = func() error { return claim.Update(func(rec *store.Record) { rec.Saved = "" }) }
	r.origin = FromSaved
	if err := v.begins(ctx, claim, r, cfg, bootTimeout); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		r.log.Warn("could not remove what the VM was saved as", "error", err)
	}
	return nil
}

// cannotResume says what can be done about a saved machine that is of no use.
func cannotResume(claim *store.Claim, err error) error {
	return fmt.Errorf("%w: %w; to boot from its disk, and lose what was in memory: smolvm start --discard-memory %s",
		ErrCannotResume, err, claim.Record().Name)
}

// discardMemory makes a VM boot from its disk that would go on from where it was. What it was
// saved as is removed by the next Tidy.
func discardMemory(claim *store.Claim) error {
	if claim.Record().Saved == "" {
		return nil
	}
	return claim.Update(func(rec *store.Record) { rec.Saved, rec.Copied = "", true })
}
