package push

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// rollback moves the fleet to an earlier release by a new pointer.
func (s *session) rollback(ctx context.Context) error {
	began := time.Now()
	site, v, err := s.begin(ctx)
	if err != nil {
		return err
	}
	if err := v.usable(s.force); err != nil {
		return err
	}
	v.doubt(s.console)
	logs, err := site.ledger.Logs(ctx)
	if err != nil {
		return err
	}
	known, err := site.known(ctx)
	if err != nil {
		return err
	}
	p, err := s.choose(ctx, site, v, logs, known)
	if err != nil {
		return err
	}
	target := p.Release
	r := &Result{Release: target, Files: p.Files, UnchangedFiles: p.Files, Members: v.Live, began: began}
	if !s.force && v.Untrusted == nil && v.Pointer.Release == target && (!v.HasHead || v.Head.CommittedRelease == target) {
		r.Sequence, r.Outcome = v.Pointer.Sequence, Unchanged
		return s.end(r)
	}
	s.say("rolling back from %s to %s", cmp.Or(string(liveRelease(v)), "nothing"), target)
	if s.dryRun {
		r.Outcome = DryRun
		return s.end(r)
	}
	p.Kind = release.KindRollback
	return s.rollOut(ctx, site, v, p, r)
}

// liveRelease is what the fleet is on; where no fleet ever committed to anything, what it would bring up.
func liveRelease(v view) release.ID { return cmp.Or(v.Head.CommittedRelease, v.Pointer.Release) }

// target is the release that was named, or the one that a rollback goes to by itself; it exists.
func (s *session) target(v view, logs []fleet.Log, known []release.ID) (release.ID, error) {
	if s.arg == "" {
		return goodBefore(v.Head, logs, known)
	}
	id, err := release.ParseID(s.arg)
	if err != nil {
		return "", kind{errUsage, err}
	}
	if !slices.Contains(known, id) {
		return "", fmt.Errorf("%q is not in the bucket", id)
	}
	return id, nil
}

// goodBefore is the good release before the live one, among those that exist. The epochs that ended well are replayed:
// a deploy puts its release on top, a rollback takes off what is above the release that it went to. So a second
// rollback in a row goes further back and not forward again.
func goodBefore(h fleet.Head, logs []fleet.Log, known []release.ID) (release.ID, error) {
	if h.CommittedEpoch == 0 {
		return "", errors.New("nothing was ever live")
	}
	type live struct {
		id   release.ID
		good bool
	}
	var stack []live
	apply := func(kind string, l live) {
		if kind == fleet.KindRollback {
			if i := slices.IndexFunc(stack, func(s live) bool { return s.id == l.id }); i >= 0 {
				stack = stack[:i]
			}
		}
		stack = append(stack, l)
	}
	logged := false
	for _, l := range logs {
		if l.Outcome != string(fleet.Done) {
			continue
		}
		apply(l.Kind, live{l.Release, healthy(l, h)})
		logged = logged || l.Epoch == h.CommittedEpoch
	}
	if !logged { // the epoch is not over, or its log was lost
		kind := ""
		if h.Epoch == h.CommittedEpoch {
			kind = h.Kind
		}
		apply(kind, live{h.CommittedRelease, true})
	}
	if len(logs) == 0 { // they are kept for 90 days
		stack = []live{{h.Good.Release, true}}
	}
	for _, l := range slices.Backward(stack) {
		if l.good && l.id != h.CommittedRelease && slices.Contains(known, l.id) {
			return l.id, nil
		}
	}
	return "", fmt.Errorf("no good release before %s is known and still in the bucket", h.CommittedRelease)
}

// healthy says whether an epoch that is done ended well. A reason means that some instances failed; only the head knows
// whether it was few enough.
func healthy(l fleet.Log, h fleet.Head) bool {
	return (l.Reason == "" || h.Good.Sequence == l.Sequence) && !h.IsBad(l.Sequence)
}

// complete counts the files of a release and compares them with what its last epoch ran on, if that is known.
func (s *site) complete(ctx context.Context, id release.ID, logs []fleet.Log) (int, error) {
	listing, err := s.store.List(ctx, id)
	if err != nil {
		return 0, err
	}
	files := len(listing)
	for _, l := range slices.Backward(logs) {
		if l.Release != id || l.Outcome != string(fleet.Done) {
			continue
		}
		note, err := s.ledger.Note(ctx, l.Sequence)
		if err != nil {
			return 0, err
		}
		if note != nil {
			files = note.Pointer.Files
		}
		break
	}
	if err := listing.Check(files); err != nil {
		return 0, fmt.Errorf("check release %q: %w", id, err)
	}
	return files, nil
}

// exist lists the newest releases that there are.
func exist(known []release.ID) string {
	const most = 10
	if len(known) == 0 {
		return "no release is in the bucket"
	}
	var names []string
	for _, id := range known[:min(most, len(known))] {
		names = append(names, string(id))
	}
	return "name one with -rollback=RELEASE; in the bucket: " + strings.Join(names, ", ")
}
