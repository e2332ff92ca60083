package store

import (
	"context"
	"errors"
	"os"
)

// Reaped is what Reap found.
type Reaped struct {
	Crashed []Record // VMs that ended with their owner or without one, as they were
	Orphans []string // the names of VMs that live on without their owner
}

// Reap settles what dead owners left. Of the VMs that ended it removes those that are
// ephemeral and marks the others as stopped; those that live on it leaves to a new
// owner. It also removes directories, of VMs and of snapshots, half made or half removed.
//
// First clean is called, if VMs ended, to remove what they left elsewhere. If it fails, their
// records stay as they are, and the next Reap finds them again.
func (s *Store) Reap(ctx context.Context, clean func(crashed []Record) error) (Reaped, error) {
	var reaped Reaped
	var doomed []string
	err := s.transition(ctx, func() error {
		dirs, err := s.directories("")
		if err != nil {
			return err
		}
		reaped = s.survey(dirs)
		if len(reaped.Crashed) > 0 {
			if err := clean(reaped.Crashed); err != nil {
				return err
			}
		}
		for _, rec := range reaped.Crashed {
			if err := bury(s.Dir(rec.Name), rec); err != nil {
				return err
			}
		}
		// Nascent directories exist within a transition only: this one holds the lock, so
		// their maker is dead. Removed ones may be under way; a second remover is harmless.
		for _, prefix := range []string{nascentPrefix, removedPrefix} {
			dirs, err := s.directories(prefix)
			if err != nil {
				return err
			}
			doomed = append(doomed, dirs...)
		}
		drafts, err := s.abandonedDrafts()
		doomed = append(doomed, drafts...)
		return err
	})
	for _, dir := range doomed {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return reaped, err
}

// survey finds the VMs that dead owners left. The caller is within a transition.
func (s *Store) survey(dirs []string) Reaped {
	var found Reaped
	for _, dir := range dirs {
		switch e := s.entry(dir); {
		case e.Err != nil || e.Owned || !e.Ephemeral && e.Run == nil:
		case e.Orphaned():
			found.Orphans = append(found.Orphans, e.Name)
		default:
			found.Crashed = append(found.Crashed, e.Record)
		}
	}
	return found
}

// bury does what is to be done about a VM whose owner died.
func bury(dir string, rec Record) error {
	if rec.Ephemeral {
		_, err := retire(dir)
		return err
	}
	rec.Run = nil
	return writeRecord(dir, rec)
}
