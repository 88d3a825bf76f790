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
	head, err := s.mendHead(ctx, site)
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
func (s *session) mendHead(ctx context.Context, site *site) (*fleet.Head, error) {
	v := site.look(ctx)
	if err := cmp.Or(v.err(), v.newer()); err != nil {
		return nil, err
	}
	if !v.lostHead() {
		return nil, nil
	}
	id := fleet.MostActive(v.Members)
	if id == "" { // none has proved a release: what the site was last asked to run
		if id = v.Pointer.Release; id == "" || v.Untrusted != nil {
			return nil, advise(errors.New("no instance serves a release, and there is no pointer to trust"), "`push -deploy` one that works, then -init again")
		}
		s.warn("no instance serves a release that works: the fleet goes to the pointer's, %s", id)
	}
	note, err := s.noteFor(ctx, site, v, id)
	if err != nil {
		return nil, err
	}
	head, err := site.ledger.Reseed(ctx, v.Head, v.Members, note, v.Now)
	if p := v.Pointer; err == nil && v.Untrusted == nil && p.Sequence > head.CommittedSequence && !head.Held(p.Sequence) {
		s.warn("%s is newer and goes live next, also where it had been stopped before the head was lost: `push -abort` stops it", p.Release)
	}
	return &head, err
}

// noteFor is the note of a release that the fleet serves, of which the table has none: the pointer's text where that names the
// release; else one that is made of what the bucket says, and comes before the pointer.
func (s *session) noteFor(ctx context.Context, site *site, v view, id release.ID) (note fleet.Note, err error) {
	p, text := v.Pointer, v.Read.Text
	if v.Untrusted != nil || p.Release != id {
		if p, _, err = site.earlier(ctx, id, nil); err != nil {
			return note, err
		}
		if p.Sequence = v.Pointer.Sequence; p.Sequence > 1 {
			p.Sequence-- // the pointer is newer: it comes next
		}
		if s.signs == nil && !site.keys.Empty() {
			return note, errors.New("verify_keys is set and signing_key is not: no instance would take the note of " + string(id))
		}
		if s.signs != nil {
			s.warn("%s is signed anew as the bucket has it, and nothing says that it is what was signed before", id)
		}
		if text, err = s.text(p); err != nil {
			return note, err
		}
	}
	if note, err = fleet.NewNote(text); err != nil {
		return note, err
	}
	if !p.Plain() {
		note.Digest = p.Manifest.SHA256
		return note, nil
	}
	listing, err := site.store.List(ctx, id)
	if err != nil {
		return note, err
	}
	note.Digest = listing.Digest()
	return note, listing.Check(p.Files)
}
