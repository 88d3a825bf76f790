package push

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"s3pulldeploy/internal/fleet"
)

// abort stops the newest release from going live: an open epoch of it is aborted by its coordinator, and it is not
// tried again until `push -retry`. What is committed is not touched: that is a rollback's work.
func (s *session) abort(ctx context.Context) error {
	site, v, err := s.asking(ctx)
	if err != nil {
		return err
	}
	h, p := v.Head, v.Pointer
	if p.Sequence <= h.CommittedSequence {
		return advise(fmt.Errorf("abort: %s is committed: there is nothing to abort", h.CommittedRelease), "`push -rollback` goes back")
	}
	if _, err := site.ledger.Request(ctx, h, fleet.Item{"hold": p.Sequence}, "again", "retry_at"); err != nil {
		return s.refused(err)
	}
	s.say("%s is held: it will not go live; `push -retry` lets it", p.Release)
	return s.asked(v)
}

// retry lets a release that was aborted or held be tried again, once and at once.
func (s *session) retry(ctx context.Context) error {
	site, v, err := s.asking(ctx)
	if err != nil {
		return err
	}
	h, p := v.Head, v.Pointer
	switch {
	case p.Sequence <= h.CommittedSequence && !(h.Automatic() && h.State == fleet.Abort):
		return fmt.Errorf("retry: %s is committed: there is nothing to try again", h.CommittedRelease)
	case h.State.Open():
		return fmt.Errorf("retry: epoch %d is open for %s: it is being tried", h.Epoch, h.Release)
	}
	if _, err := site.ledger.Request(ctx, h, fleet.Item{"again": p.Sequence, "hint": p.Sequence}, "hold"); err != nil {
		return s.refused(err)
	}
	s.say("%s is tried again; `push -status` shows how it goes", p.Release)
	return s.asked(v)
}

// asking reads what a request is based on: a head and a pointer are needed.
func (s *session) asking(ctx context.Context) (*site, view, error) {
	site, v, err := s.begin(ctx)
	if err != nil {
		return nil, view{}, err
	}
	if err := cmp.Or(v.err(), v.newer()); err != nil {
		return nil, view{}, err
	}
	if !v.HasHead || v.Pointer.Release == "" {
		return nil, view{}, errors.New("no rollout was ever begun: there is nothing to ask the fleet")
	}
	return site, v, nil
}

// refused explains a request that came too late: the fleet has gone on meanwhile.
func (s *session) refused(err error) error {
	if errors.Is(err, fleet.ErrOvertaken) {
		return advise(err, "`push -status` shows where the fleet is now")
	}
	return err
}

// asked prints the object of a request that was taken.
func (s *session) asked(v view) error {
	if !s.json {
		return nil
	}
	return s.object(struct {
		Release  string `json:"release"`
		Sequence int64  `json:"sequence"`
		Epoch    int64  `json:"epoch"`
	}{string(v.Pointer.Release), v.Pointer.Sequence, v.Head.Epoch})
}
