package machine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/store"
)

// EnvChange is a change of a VM's environment.
type EnvChange struct {
	Set   []string `json:"set,omitempty"`   // entries of the form "NAME=value"
	Unset []string `json:"unset,omitempty"` // names; those that are not set do not matter
}

// apply returns the environment after the change.
func (c EnvChange) apply(env []string) []string {
	changed := make(map[string]bool)
	for _, name := range c.Unset {
		changed[name] = true
	}
	for _, entry := range c.Set {
		changed[envName(entry)] = true
	}
	env = slices.DeleteFunc(slices.Clone(env), func(entry string) bool { return changed[envName(entry)] })
	for i, entry := range c.Set {
		// Of those with the same name the last one counts.
		again := slices.ContainsFunc(c.Set[i+1:], func(later string) bool { return envName(later) == envName(entry) })
		if !again {
			env = append(env, entry)
		}
	}
	return env
}

func (c EnvChange) validate() error {
	if err := checkEnv(c.Set); err != nil {
		return err
	}
	for _, name := range c.Unset {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fmt.Errorf("%w: %q is no name of an environment variable", ErrInvalidOption, name)
		}
	}
	return nil
}

func envName(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}

// checkEnv refuses what is no entry of an environment.
func checkEnv(entries []string) error {
	for _, entry := range entries {
		name, _, ok := strings.Cut(entry, "=")
		if !ok || name == "" || strings.ContainsRune(entry, 0) {
			return fmt.Errorf("%w: environment entry %q is not NAME=value", ErrInvalidOption, entry)
		}
	}
	return nil
}

// ChangeEnv changes the environment of commands that are started from now on.
func (v *VM) ChangeEnv(ctx context.Context, change EnvChange) error {
	if err := change.validate(); err != nil {
		return err
	}
	v.life.Lock()
	defer v.life.Unlock()
	claim, r, err := v.own(ctx)
	if err != nil {
		return fmt.Errorf("cannot change environment: %w", err)
	}
	err = claim.Update(func(rec *store.Record) { rec.Env = change.apply(rec.Env) })
	if err != nil {
		return fmt.Errorf("cannot change environment: %w", err)
	}
	if r == nil {
		return v.disownIdle()
	}
	r.identity.setEnv(claim.Record().Env)
	if r.paused.Load() {
		return nil // it is told when it is resumed
	}
	return v.tellIdentity(ctx, r)
}

// tellIdentity tells a guest that runs what it does not know of itself yet.
func (v *VM) tellIdentity(ctx context.Context, r *run) error {
	link, err := r.channel.Link(ctx)
	if err == nil {
		err = r.identity.renew(ctx, link)
	}
	if err != nil {
		return v.unlessStopped(ctx, "configure guest", fmt.Errorf("configure guest: %w", err))
	}
	return nil
}
