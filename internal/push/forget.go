package push

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"s3pulldeploy/internal/fleet"
)

// silent is -forget's word for all that are silent.
const silent = "silent"

// forget drops the rows of instances that are gone, so that nobody counts them any more. One that lives after all registers
// again at its next beat, as a newcomer.
func (s *session) forget(ctx context.Context) error {
	site, err := s.open(ctx)
	if err != nil {
		return err
	}
	v := site.look(ctx)
	s.say("%s", site.line(v))
	if v.MembersErr != nil {
		return v.MembersErr
	}
	rows, err := s.forgettable(v)
	if err != nil {
		return err
	}
	gone := []string{}
	for _, m := range rows {
		err := site.ledger.Forget(ctx, m)
		if errors.Is(err, fleet.ErrOvertaken) {
			err = advise(fmt.Errorf("forget %s: it has just given a sign of life", m.Instance), "`push -status` shows it")
		}
		if err != nil {
			return err
		}
		s.say("forgot %s (%s, last heard of %s ago)", m.Instance, m.Phase, span(v.age(m)))
		gone = append(gone, m.Instance)
	}
	if len(gone) == 0 {
		s.say("nobody is silent")
	}
	if s.json {
		return s.object(struct {
			Forgotten []string `json:"forgotten"`
		}{gone})
	}
	return nil
}

// forgettable are the rows that were asked for. One that lives is refused: while it serves, the fleet must know of it.
func (s *session) forgettable(v view) ([]fleet.Member, error) {
	var rows []fleet.Member
	for _, m := range v.Members {
		if s.arg == silent && !v.heard(m) || s.arg == m.Instance {
			rows = append(rows, m)
		}
	}
	slices.SortFunc(rows, func(a, b fleet.Member) int { return strings.Compare(a.Instance, b.Instance) })
	switch {
	case s.arg == silent || s.force:
		return rows, nil
	case len(rows) == 0:
		return nil, advise(fmt.Errorf("forget: there is no instance %q", s.arg), "`push -status` lists them")
	case v.heard(rows[0]):
		return nil, advise(fmt.Errorf("forget: %s lives, it was heard of %s ago", s.arg, span(v.age(rows[0]))),
			"stop its agent or the machine first; if its clock is wrong, -force")
	}
	return rows, nil
}
