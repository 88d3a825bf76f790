package push

import (
	"context"
	"errors"
	"fmt"
	"time"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// maxAhead is how far a sequence may be ahead of S3's clock before every agent refuses it.
const maxAhead = 24 * time.Hour

// next fills in what every new pointer has: the sequence, and what the command line asks for.
func (s *session) next(v view, p release.Pointer, now time.Time) (release.Pointer, error) {
	last := v.Pointer.Sequence
	if v.Untrusted != nil && last > now.Add(maxAhead).Unix() {
		last = 0 // anybody can write such a pointer, and no instance took it
	}
	p.Sequence = release.NextSequence(now, last, v.Head.Sequence, v.Head.CommittedSequence)
	p.Message, p.Commit = s.message, s.commit
	p.Policy = release.Policy{MaxExcluded: s.maxExcluded}
	if r := s.cfg.Rollout; p.Kind != release.KindRollback {
		p.Policy.Waves, p.Policy.Bake, p.Policy.Approve = r.Waves, r.Bake, r.Approve
	}
	if p.Policy.MaxExcluded == "" && s.cfg.Rollout.MaxExcluded != fleet.DefaultGuard {
		p.Policy.MaxExcluded = s.cfg.Rollout.MaxExcluded
	}
	if d := v.Read.Date; !d.IsZero() && p.Sequence > d.Add(maxAhead).Unix() {
		return p, advise(fmt.Errorf("the new sequence %d would be more than a day ahead of S3's clock: no agent would take it", p.Sequence),
			"set this machine's clock; if the pointer itself is from the future, remove it and push again")
	}
	_, err := s.text(p)
	return p, err
}

// publish writes the pointer, if it still is the one in the view, and gives the fleet a hint. A lost race is a
// *store.ConflictError.
func (s *session) publish(ctx context.Context, site *site, v view, p release.Pointer) error {
	if err := failpoint.Hit("PU3"); err != nil {
		return err
	}
	text, err := s.text(p)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("PU4"); err != nil {
		return err
	}
	_, err = site.store.WritePointer(ctx, text, v.Read.ETag)
	failpoint.Landed("PU4")
	if err != nil {
		var lost *store.ConflictError
		if errors.As(err, &lost) {
			err = advise(err, "look at what it was with `push -status`, then push again")
		}
		return err
	}
	s.say("published %s as sequence %d", p.Release, p.Sequence)
	if p.Kind == release.KindRollback {
		if err := s.undrop(ctx, site, p.Release); err != nil {
			return err
		}
	}
	if p.Plain() && string(text) != string(release.Pointer{Release: p.Release, Sequence: p.Sequence, Files: p.Files}.Text()) {
		s.say("the pointer has more than three lines: an older tool that reads it must ignore the others")
	}
	if !v.HasHead {
		return nil
	}
	// Best effort: without it the agents find the pointer a little later.
	err = s.hint(ctx, site, v.Head, p.Sequence)
	if err != nil && ctx.Err() == nil {
		s.warn("the fleet got no hint and will find the pointer by itself: %v", err)
	}
	return nil
}

// hint tells the fleet that there is a newer pointer, also where the head has gone on since it was looked at.
func (s *session) hint(ctx context.Context, site *site, head fleet.Head, sequence int64) error {
	if err := failpoint.Hit("PU5"); err != nil {
		return err
	}
	now, err := site.ledger.Request(ctx, head, fleet.Item{"hint": sequence})
	if errors.Is(err, fleet.ErrOvertaken) && now.Epoch > 0 {
		_, err = site.ledger.Request(ctx, now, fleet.Item{"hint": sequence})
	}
	return err
}
