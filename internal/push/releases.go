package push

import (
	"context"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// listed is one release of -releases; its JSON form is stable. In the plain layout the bucket knows no more than the name.
type listed struct {
	Release release.ID `json:"release"`
	State   string     `json:"state"` // "live", "pushed", "aborted", "bad" (rolled back), "was live" or "": never rolled out, as far as is known
}

// releases prints what is in the bucket, newest first.
func (s *session) releases(ctx context.Context) error {
	site, err := s.open(ctx)
	if err != nil {
		return err
	}
	known, err := site.present(ctx, openCache(s.cfg.Scope(), ""))
	if err != nil {
		return err
	}
	v := site.look(ctx)
	if err := v.err(); err != nil {
		return err
	}
	logs, err := site.ledger.Logs(ctx)
	if err != nil {
		return err
	}
	list := []listed{}
	for _, id := range known {
		list = append(list, listed{id, stateOf(id, v, logs)})
	}
	if s.json {
		return s.object(struct {
			Releases []listed `json:"releases"`
		}{list})
	}
	for _, l := range list {
		s.say("%-20s  %s", l.Release, l.State)
	}
	if len(list) == 0 {
		s.say("no release is in the bucket")
	}
	return nil
}

// stateOf says what became of a release.
func stateOf(id release.ID, v view, logs []fleet.Log) string {
	switch {
	case id == v.Head.CommittedRelease:
		return "live"
	case id == v.Pointer.Release && !v.Head.IsBad(v.Pointer.Sequence):
		return "pushed"
	}
	state := ""
	for _, l := range logs {
		switch {
		case l.Release != id:
		case l.Outcome == fleet.RolledBack:
			state = "bad"
		case l.Outcome == string(fleet.Done) && state != "bad":
			state = "was live"
		case state == "":
			state = "aborted"
		}
	}
	return state
}
