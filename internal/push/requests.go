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
	now, err := site.ledger.Hold(ctx, h, p.Sequence)
	if err != nil {
		return s.refused(err)
	}
	switch {
	case p.Sequence <= now.CommittedSequence:
		return advise(fmt.Errorf("abort: %s was committed meanwhile: too late to abort", now.CommittedRelease), "`push -rollback` goes back")
	case now.State.Open() && now.Sequence == p.Sequence:
		s.say("asked the fleet to abort %s in epoch %d; `push -status` shows whether it did before the commit", p.Release, now.Epoch)
	default:
		s.say("%s is held: it will not go live; `push -retry` lets it", p.Release)
	}
	return s.asked(v)
}

// retry lets a release that was aborted or held be tried again, once and at once. One whose checks failed is not: no agent opens its
// sequence any more.
func (s *session) retry(ctx context.Context) error {
	site, v, err := s.asking(ctx)
	if err != nil {
		return err
	}
	h, p := v.Head, v.Pointer
	switch {
	case p.Sequence <= h.CommittedSequence && !(h.Automatic() && h.State == fleet.Abort):
		return fmt.Errorf("retry: %s is committed: there is nothing to try again", h.CommittedRelease)
	case h.State.Open() && h.Sequence != p.Sequence:
		return advise(fmt.Errorf("retry: epoch %d is open for %s", h.Epoch, h.Release), "ask again when it is over: `push -status` shows how it goes")
	case h.State.Open():
		return fmt.Errorf("retry: epoch %d is open for %s: it is being tried", h.Epoch, h.Release)
	case spent(h, p.Sequence):
		return advise(fmt.Errorf("retry: %s failed its checks (%s): it is not tried again under this sequence", p.Release, h.Why), "push anew")
	}
	if p.Kind != fleet.KindRollback && !(h.Automatic() && h.Sequence == p.Sequence) {
		if err := s.frozen(ctx, site, &v); err != nil {
			return err
		}
		h = v.Head
	}
	if _, err := site.ledger.Request(ctx, h, fleet.Item{"again": p.Sequence, "hint": p.Sequence}); err != nil {
		return s.refused(err)
	}
	s.say("%s is tried again; `push -status` shows how it goes", p.Release)
	return s.asked(v)
}

// spent says that a sequence is never opened again: what failed its checks goes live only under a new one. An aborted rollback that
// the fleet began by itself is under a bad sequence, too, and is tried again.
func spent(h fleet.Head, sequence int64) bool {
	return h.IsBad(sequence) && !(h.Automatic() && h.State == fleet.Abort)
}

// asking reads what a request is based on: a head and a pointer are needed. The pointer is read after the head, so that it is the newest
// that the head knows of: between the two somebody may push, and hold what they pushed, and a request for what came before would
// lower that hold.
func (s *session) asking(ctx context.Context) (*site, view, error) {
	site, v, err := s.begin(ctx)
	if err != nil {
		return nil, view{}, err
	}
	site.readPointer(ctx, &v)
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
