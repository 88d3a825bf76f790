package push

import (
	"context"
	"errors"
	"fmt"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// approve lets the wave that a rollout is at pass, once it is healthy and has baked.
func (s *session) approve(ctx context.Context) error {
	site, v, err := s.heading(ctx)
	if err != nil {
		return err
	}
	h := v.Head
	if s.arg != "" && release.ID(s.arg) != h.Release {
		return fmt.Errorf("approve: the rollout under way is of %s, not of %q", h.Release, s.arg)
	}
	plan, err := site.plan(ctx, h)
	if err != nil {
		return err
	}
	switch {
	case !h.State.Open():
		return advise(errors.New("approve: no rollout is under way"), "`push -status` shows where the fleet is")
	case !plan.Approve || len(plan.Waves) == 0:
		return fmt.Errorf("approve: the rollout of %s asks for no approval", h.Release)
	case h.State == fleet.Prepare:
		return fmt.Errorf("approve: no wave of %s has begun yet: there is nothing to look at", h.Release)
	case h.Approved >= h.Wave:
		s.say("wave %d of %s is approved already", h.Wave, h.Release)
		return s.asked(v)
	}
	if _, err := site.ledger.Request(ctx, h, fleet.Item{"approved": h.Wave}); err != nil {
		return s.refused(err)
	}
	s.say("approved wave %d of %d of %s", h.Wave, len(plan.Waves), h.Release)
	return s.asked(v)
}

// plan is how the epoch of a head goes out; no waves for a rollback.
func (s *site) plan(ctx context.Context, h fleet.Head) (fleet.Plan, error) {
	if h.Kind == fleet.KindRollback || h.CommittedEpoch == 0 {
		return fleet.Plan{}, nil
	}
	note, err := s.ledger.Note(ctx, h.Sequence)
	if err != nil || note == nil {
		return fleet.Plan{}, err
	}
	return fleet.ParsePlan(note.Pointer.Policy)
}
