package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
)

// Every byte of the releases on the disk is read once a day. SHA-256 takes less than 2 % of a core at this rate, and a small EBS
// volume gives fifteen times as much.
const (
	scrubEvery = 24 * time.Hour
	scrubRate  = 8 << 20         // bytes a second
	scrubFirst = time.Hour       // the first is within this, so that instances that were booted together do not read together
	scrubRetry = 5 * time.Minute // after an error: S3 may be away
)

// Scrub is what the last one found, kept in the state directory.
type Scrub struct {
	At      time.Time // its end; zero: there was none yet
	Files   int
	Bytes   int64
	Damaged []string `json:",omitempty"` // release/path, the first few
	Mended  bool     `json:",omitempty"` // what was damaged of the live release has been fetched again
}

// String is one line for people.
func (s Scrub) String() string {
	if s.At.IsZero() {
		return "not yet"
	}
	text := fmt.Sprintf("%s: %d files, %d MB", s.At.UTC().Format(time.RFC3339), s.Files, megabytes(s.Bytes))
	if len(s.Damaged) > 0 {
		text += fmt.Sprintf("; damaged: %q", s.Damaged)
	}
	if s.Mended {
		text += "; the live release was mended"
	}
	return text
}

// scrubFile is the name, in the state directory, of the last scrub.
const scrubFile = "scrub"

// scrubs is what the loop knows of them.
type scrubs struct {
	due  time.Duration // boot time of the next
	last Scrub
	err  string // what is still damaged, or could not be looked at
}

// recallScrub reads when the last one was. Losing it costs one more.
func (a *Agent) recallScrub() {
	var last Scrub
	if _, err := a.p.Disk.Load(scrubFile, &last); err != nil {
		a.log.Warn("the last scrub is not known any more", "error", err)
	}
	first := time.Duration(a.p.Random() * float64(scrubFirst))
	wait := min(scrubEvery-a.p.Clock.Now().Sub(last.At), scrubEvery) // a clock that was ahead puts it off by a day at most
	a.scrub = scrubs{due: a.p.Clock.Boot() + max(wait, first), last: last}
}

// scrubWanted is what is live, when it is time to look at the disk and there is nothing else to do; else nothing.
func (a *Agent) scrubWanted() (none fleet.Commitment) {
	if !a.quiet() || a.p.Clock.Boot() < a.scrub.due {
		return none
	}
	return a.view.Flipped
}

func (a *Agent) scrubbed(s Scrub, err error) {
	a.scrub.due, a.scrub.err = a.p.Clock.Boot()+scrubEvery, ""
	if !s.At.IsZero() {
		a.scrub.last = s
	}
	if len(s.Damaged) > 0 {
		a.spare.held = fleet.Target{} // it may be that one: it is looked at again
	}
	if err != nil {
		a.scrub.due, a.scrub.err = a.p.Clock.Boot()+scrubRetry, err.Error()
		a.log.Error("scrub", "error", err)
	}
}

// scrub reads what is on the disk, and has fetched again what is damaged of the live release.
func (m *machine) scrub(ctx context.Context, live fleet.Commitment) (Scrub, error) {
	found, err := m.disk.Scrub(ctx, scrubRate)
	if err != nil {
		return Scrub{}, err
	}
	s := Scrub{At: time.Now(), Files: found.Files, Bytes: found.Bytes}
	for _, id := range slices.Sorted(maps.Keys(found.Damaged)) {
		for _, p := range found.Damaged[id] {
			if len(s.Damaged) < 10 {
				s.Damaged = append(s.Damaged, string(id)+"/"+p)
			}
		}
	}
	if bad := found.Damaged[live.Release]; len(bad) > 0 {
		if err = m.mend(ctx, live); err != nil {
			err = fmt.Errorf("%d damaged in the live release %s, the first is %q: %w", len(bad), live.Release, bad[0], err)
		}
		s.Mended = err == nil
	}
	if err == nil { // else it is due again after a restart
		err = m.disk.Save(scrubFile, s)
	}
	return s, err
}

// mend brings what is damaged of the live release back, file by file, while it is served. Only what has to be built anew, as what a
// hook had made, is published anew.
func (m *machine) mend(ctx context.Context, live fleet.Commitment) error {
	w, err := m.unasked(ctx, fleet.Target{Release: live.Release, Sequence: live.Note()})
	if err != nil {
		return err
	}
	quietly := func(string) {}
	err = m.fetch(ctx, w, quietly, func(ctx context.Context, s *disk.Stage, _ fleet.Want) error { return s.Mend(ctx) })
	if errors.Is(err, disk.ErrDamaged) || errors.Is(err, disk.ErrState) {
		m.log.Warn("the live release is built anew", "release", string(live.Release), "error", err)
		m.prepareEnds = time.Now().Add(m.cfg.PrepareTimeout)
		err = m.stageOnce(ctx, w, quietly)
	}
	if err != nil {
		return err
	}
	m.log.Info("the live release was damaged on this disk and is whole again", "release", string(live.Release))
	return m.recompile(ctx, live)
}

// recompile empties opcache: it may have compiled a damaged file, and the mended one has the same name and time.
func (m *machine) recompile(ctx context.Context, live fleet.Commitment) error {
	mode := m.cfg.Opcache.Effective()
	if mode == config.Off {
		return nil
	}
	if _, err := m.opcache.Reset(ctx); err != nil {
		return fmt.Errorf("reset opcache: %w", err)
	}
	return m.warm(ctx, live.Release, func(string) {})
}
