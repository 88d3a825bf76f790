package push

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// step is one line of -init.
type step struct {
	What   string `json:"what"`
	State  string `json:"state"` // "ok", "created", "differs", "unsupported", "denied"
	Detail string `json:"detail"`
}

// initialise creates what is missing, mends a lost head, and says what to do next.
func (s *session) initialise(ctx context.Context) error {
	site, err := s.open(ctx)
	if err != nil {
		return err
	}
	s.say("%s in %s, %s", s.cfg.Site, s.cfg.Bucket, site.who)
	steps := []step{}
	report := func(st step) {
		steps = append(steps, st)
		s.say("%-12s %-12s %s", st.State, st.What, st.Detail)
	}
	bucket, bucketErr := site.store.Init(ctx, site.region)
	for _, b := range bucket {
		report(step{b.What, string(b.State), b.Detail})
	}
	table, tableErr := site.table.Init(ctx)
	for _, t := range table {
		report(step{t.What, t.State, t.Detail})
	}
	if err := errors.Join(bucketErr, tableErr); err != nil {
		return err
	}
	head, err := site.mendHead(ctx)
	if err != nil {
		return fmt.Errorf("mend head: %w", err)
	}
	if head != nil {
		report(step{"head", "created", fmt.Sprintf("epoch %d, %s: as the instances report", head.Epoch, head.CommittedRelease)})
	}
	s.say("next:\n  push -config=%[1]s -deploy=DIR\n  agent -config=%[2]s    on each instance, as a service\n  push -config=%[1]s -status",
		s.config, "/etc/s3-pull-deploy/"+s.cfg.Site+".yml")
	if !s.json {
		return nil
	}
	return s.object(struct {
		Steps []step `json:"steps"`
	}{steps})
}

// mendHead writes the head anew where the instances have seen epochs that it does not know: the table was lost, or
// restored from a backup. It returns nil where nothing is lost.
func (s *site) mendHead(ctx context.Context) (*fleet.Head, error) {
	v := s.look(ctx)
	if err := cmp.Or(v.err(), v.newer()); err != nil {
		return nil, err
	}
	if !v.lostHead() {
		return nil, nil
	}
	id := fleet.MostActive(v.Members)
	if id == "" {
		return nil, errors.New("instances voted in epochs that the head does not know, but none serves a release")
	}
	listing, err := s.store.List(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := listing.Check(len(listing)); err != nil {
		return nil, err
	}
	text := release.Pointer{Release: id, Sequence: v.Pointer.Sequence, Files: len(listing)}.Text()
	switch {
	case v.Pointer.Release == id:
		text = v.Read.Text
	case v.Pointer.Sequence > 1: // the pointer is newer: it comes next
		text = release.Pointer{Release: id, Sequence: v.Pointer.Sequence - 1, Files: len(listing)}.Text()
	}
	note, err := fleet.NewNote(text)
	if err != nil {
		return nil, err
	}
	note.Digest = listing.Digest()
	head, err := s.ledger.Reseed(ctx, v.Head, v.Members, note, v.Now)
	return &head, err
}
