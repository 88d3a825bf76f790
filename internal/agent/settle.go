package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
)

// after is what has been done after the flip of an epoch. Settling is tried again until the health check passes, for ever
// when a database is away; what passed is not: a reset under load can crash php-fpm, and after_flip may restart things.
type after struct {
	epoch  int64
	reset  map[string]bool // pools by their routes
	reload bool            // php-fpm, for opcache.preload
	units  bool            // of the setting restart
	hook   bool
}

// The first release of a machine opens the gate (systemd/), and the web server begins to start. For so long it is asked again at
// once: this machine would else be tried again seconds later, and meanwhile refuse the next release because nothing answers.
const (
	webServerStarts = 10 * time.Second
	askedAgain      = 200 * time.Millisecond
)

// settle makes PHP serve what was flipped to, runs after_flip and asks for the health of it. Called again for the same epoch,
// it repeats only what did not pass.
func (m *machine) settle(ctx context.Context, w fleet.Want) error {
	err := m.settleOnce(ctx, w)
	for end := time.Now().Add(webServerStarts); m.opened && php.Unreachable(err) && time.Now().Before(end); err = m.settleOnce(ctx, w) {
		m.log.Debug("the web server does not answer yet", "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(askedAgain):
		}
	}
	m.opened = false
	if ctx.Err() != nil {
		return err // given up: says nothing about the release
	}
	m.past.try(w.Commit.Release, func(d *deeds) { d.Settled, d.Failed = d.Settled || err == nil, d.Failed || err != nil })
	return err
}

func (m *machine) settleOnce(ctx context.Context, w fleet.Want) error {
	if m.after.epoch != w.Epoch {
		m.after = after{epoch: w.Epoch, reset: map[string]bool{}}
		m.undone.set("")
	}
	if goesBack(w) {
		m.revive(ctx)
	}
	if err := m.switchPHP(ctx, w.Commit.Release); err != nil {
		return err
	}
	if units := otherUnits(m.cfg.Restart); !m.after.units && len(units) > 0 {
		err := m.service.Restart(ctx, units)
		switch {
		case untouched(err) && ctx.Err() == nil:
			m.warn("restart: what runs in these units may be of the release before: " + err.Error())
		case err != nil:
			return fmt.Errorf("restart: %w", err)
		}
		m.after.units = true
	}
	if !m.after.hook {
		if err := m.hook(ctx, "after_flip", m.cfg.Hooks.AfterFlip, filepath.Join(m.cfg.Root, string(w.Commit.Release)), w); err != nil {
			return err
		}
		m.after.hook = true
	}
	if err := failpoint.Hit("A22"); err != nil {
		return err
	}
	h := m.cfg.HealthCheck
	if h.URL == "" {
		return nil
	}
	check := php.Health{URL: h.URL, Host: h.Host, Expect: h.Expect, Timeout: h.Timeout, Attempts: h.Attempts, Release: string(w.Commit.Release)}
	if err := check.Check(ctx); err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	return nil
}

// spare brings a release to the disk that nobody waits for: the one to go back to. One that is there is left as it is.
func (m *machine) spare(ctx context.Context, t fleet.Target) error {
	if _, ok, _ := m.disk.Has(t.Release); ok {
		return nil
	}
	w, err := m.unasked(ctx, t)
	if err != nil {
		return err
	}
	m.prepareEnds = time.Now().Add(m.cfg.PrepareTimeout)
	return m.stageOnce(ctx, w, func(string) {})
}

// unasked is the want of a release that the fleet does not ask for now.
func (m *machine) unasked(ctx context.Context, t fleet.Target) (w fleet.Want, err error) {
	note, err := m.noteOf(ctx, t.Sequence)
	if err != nil {
		return w, err
	}
	if note == nil || note.Pointer.Release != t.Release {
		return w, fmt.Errorf("the table has no note %d of release %s", t.Sequence, t.Release)
	}
	c := fleet.Commitment{Sequence: t.Sequence, Release: t.Release, Digest: note.Digest}
	return fleet.Want{Task: fleet.Stage, Note: *note, Commit: c, Joining: true}, nil
}

// clean removes what nobody needs. That it fails is logged here: nobody is waiting for it.
func (m *machine) clean(keep keepList) error {
	r := disk.Retention{Keep: map[release.ID]bool{}, Bad: m.past.bad(), N: m.cfg.KeepReleases, For: m.cfg.KeepFor, Now: time.Now()}
	for _, id := range keep {
		r.Keep[id] = true
	}
	gone, err := m.disk.Prune(r)
	for _, id := range gone {
		m.log.Info("removed release", "release", string(id))
	}
	if err == nil {
		err = errors.Join(m.past.forget(), m.manifests.forget(m.disk))
	}
	if err != nil {
		m.log.Warn("clean up", "error", err)
	}
	return err
}
