package push

import (
	"context"
	"errors"
	"os"
	"os/user"
	"time"

	"s3pulldeploy/internal/fleet"
)

// freeze stops every rollout of the site but rollbacks, and nothing that is under way on an instance alone.
func (s *session) freeze(ctx context.Context) error {
	site, v, err := s.heading(ctx)
	if err != nil {
		return err
	}
	f := fleet.Freeze{By: caller(), Why: s.arg}
	if s.length > 0 {
		f.Until = site.now().Add(s.length).Unix()
	}
	h, err := site.ledger.Freeze(ctx, v.Head, f)
	if err != nil {
		return s.refused(err)
	}
	s.say("frozen %s; `push -unfreeze` lifts it", h.Frozen)
	if h.State.Open() && h.Kind != fleet.KindRollback {
		s.say("the rollout of %s goes no further; `push -abort` ends it", h.Release)
	}
	return s.frozenObject(h)
}

// unfreeze lets rollouts go on.
func (s *session) unfreeze(ctx context.Context) error {
	site, v, err := s.heading(ctx)
	if err != nil {
		return err
	}
	if v.Head.Frozen == nil {
		s.say("%s is not frozen", s.cfg.Site)
		return s.frozenObject(v.Head)
	}
	h, err := site.thaw(ctx, v.Head)
	if err != nil {
		return s.refused(err)
	}
	s.say("lifted the freeze %s", v.Head.Frozen)
	return s.frozenObject(h)
}

// thaw lifts the freeze of a head, also when the coordinator renews its lease meanwhile. A freeze that somebody else made since
// stays: [fleet.ErrOvertaken].
func (s *site) thaw(ctx context.Context, h fleet.Head) (fleet.Head, error) {
	was := *h.Frozen
	for {
		now, err := s.ledger.Thaw(ctx, h)
		switch {
		case !errors.Is(err, fleet.ErrOvertaken):
			return now, err
		case now.Frozen == nil && now.Epoch > 0:
			return now, nil
		case now.Frozen == nil || *now.Frozen != was:
			return now, err
		}
		h = now
	}
}

// heading reads what a request to the fleet is based on: there must be a head.
func (s *session) heading(ctx context.Context) (*site, view, error) {
	site, v, err := s.begin(ctx)
	if err != nil {
		return nil, view{}, err
	}
	if v.HeadErr != nil {
		return nil, view{}, v.HeadErr
	}
	if !v.HasHead {
		return nil, view{}, errors.New("no rollout was ever begun: there is nothing to ask the fleet")
	}
	return site, v, nil
}

func (s *session) frozenObject(h fleet.Head) error {
	if !s.json {
		return nil
	}
	return s.object(struct {
		Freeze *statusFreeze `json:"freeze"`
	}{freezeOf(h)})
}

func freezeOf(h fleet.Head) *statusFreeze {
	if h.Frozen == nil {
		return nil
	}
	return &statusFreeze{h.Frozen.By, h.Frozen.Why, h.Frozen.Until}
}

// caller is who runs this command, as far as this machine knows: user@host.
func caller() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// frozen refuses to push into a site that somebody has frozen. A freeze whose time is over is lifted: agents do that too, but
// only those whose clocks can be believed.
func (s *session) frozen(ctx context.Context, site *site, v *view) error {
	f := v.Head.Frozen
	if f == nil {
		return nil
	}
	if f.Over(v.Now) {
		h, err := site.thaw(ctx, v.Head)
		if err == nil {
			v.Head = h
			return nil
		}
		if f = h.Frozen; f == nil {
			return err
		}
	}
	return kind{errConflict, advise(errors.New("the site is frozen "+f.String()), "`push -unfreeze` lifts it; a rollback is not stopped by a freeze")}
}

// longestFreeze is above what anybody freezes for: a longer -for is more likely a slip.
const longestFreeze = 90 * 24 * time.Hour
