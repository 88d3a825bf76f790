package push

import (
	"context"
	"errors"
	"time"

	"s3pulldeploy/internal/release"
)

// lookFurther is how many bytes the parent may lack before other manifests are read. Up to here everything fits into
// one delta, and the listing and a megabyte for each manifest would cost more than they could save.
const lookFurther = release.MaxInline

// smallBaseline is how many bytes a new baseline may have to go into the delta: a megabyte that instances on the parent fetch in vain
// costs them less than a request more.
const smallBaseline = 1 << 20

// compare finds out what of the tree is not in the bucket.
func (s *session) compare(ctx context.Context, p *parcel, v view) (err error) {
	at := time.Now().UTC().Truncate(time.Second)
	if s.clock != nil {
		at = s.clock()
	}
	p.name(at)
	if p.parent, err = s.parent(ctx, p.site, p.cache, v.Pointer); err != nil {
		return err
	}
	if s.noExec {
		s.keepExec(p)
	}
	if p.anew {
		return p.plan(nil)
	}
	var manifests []*release.Manifest
	if p.parent != nil {
		manifests = append(manifests, p.parent)
	}
	if err := p.plan(manifests); err != nil {
		return err
	}
	if p.parent != nil && p.draft.NewBytes <= lookFurther {
		return nil
	}
	return s.compareAll(ctx, p, manifests)
}

// keepExec gives every file the executable bit that it has in the release before: this system does not know of any.
func (s *session) keepExec(p *parcel) {
	for i := range p.tree.Entries {
		e := &p.tree.Entries[i]
		e.Exec = false
		if p.parent == nil || e.Kind != release.File {
			continue
		}
		if at, ok := p.parent.Find(e.Path); ok {
			e.Exec = p.parent.Entries[at].Exec
		}
	}
	if p.parent == nil {
		s.say("files have no executable bit on this system: none of the release gets one")
	} else {
		s.say("files have no executable bit on this system: each keeps that of %s, new ones get none", p.before)
	}
}

// name names the release after a time, or after the next second, which is waited for, where the pointer's has that name.
func (p *parcel) name(at time.Time) {
	if p.at, p.id = at, release.NewID(at); p.id == p.before {
		p.name(at.Add(time.Second))
	}
}

// compareAll compares with all kept releases, and with what interrupted pushes left.
func (s *session) compareAll(ctx context.Context, p *parcel, manifests []*release.Manifest) error {
	others, err := p.site.kept(ctx, p.cache, s.cfg.KeepRemote)
	if err != nil {
		return err
	}
	for _, k := range others {
		if p.parent == nil || k.id != p.before {
			manifests = append(manifests, k.manifest)
		}
	}
	if err := p.plan(manifests); err != nil || p.draft.NewBytes == 0 {
		return err
	}
	if err := p.leftovers(ctx, manifests); err != nil {
		return err
	}
	if manifests, err = p.sound(manifests); err != nil {
		return err
	}
	return p.plan(manifests)
}

// plan drafts the release out of what these manifests and what was left over have, and what is new.
func (p *parcel) plan(kept []*release.Manifest) (err error) {
	p.kept = kept
	p.draft, err = release.NewDraft(p.tree.Entries, p.parent, kept, p.at.Unix()-60)
	for _, l := range p.left {
		if err == nil {
			p.draft.Adopt(l.sum, l.index)
		}
	}
	return err
}

// unchanged says whether the pointer names this very tree, and the fleet is on it or has not begun.
func (p *parcel) unchanged(v view) (bool, error) {
	if v.Untrusted != nil || p.parent == nil || p.draft.NewBytes > 0 || v.HasHead && v.Head.CommittedRelease != v.Pointer.Release {
		return false, nil
	}
	m, err := p.draft.Manifest()
	if err != nil {
		return false, err
	}
	ours, err := m.Digest()
	if err != nil {
		return false, err
	}
	theirs, err := p.parent.Digest()
	return ours == theirs, err
}

// small says whether the draft is of a baseline that goes into the delta.
func (p *parcel) small() bool {
	return len(p.kept) == 0 && p.parent != nil && p.draft.NewBytes <= smallBaseline
}

// errTooMuch ends a trial as soon as it can tell nothing more.
var errTooMuch = errors.New("more than a delta holds")

// settle decides whether the whole release is stored anew, before anything is uploaded and as a dry run says it. For that it
// builds what is new. What fits into the delta is ready then; what does not is built again while it is uploaded. Packs of
// new contents are all live, and cost what those of a first push do: where there is no need of a baseline without
// them, there is none with them, and the trial ends at the first.
func (s *session) settle(ctx context.Context, p *parcel) error {
	if len(p.kept) == 0 {
		return nil
	}
	needless := p.draft.NewBytes > release.MaxInline && !p.draft.KeptCost().NeedsBaseline()
	trial := newPacking(p, release.MaxInline)
	trial.put = func(context.Context, *release.Pack) error {
		if needless {
			return errTooMuch
		}
		trial.resize(release.MaxInline, packTime)
		return nil
	}
	inlined, err := trial.run(ctx, p.parent != nil)
	if errors.Is(err, errTooMuch) {
		return p.plan(p.kept)
	}
	if err != nil {
		return err
	}
	m, err := p.draft.Manifest()
	switch {
	case err != nil:
		return err
	case m.FreshCost().NeedsBaseline():
		return s.baseline(ctx, p)
	case inlined, p.draft.NewBytes == 0:
		p.built, p.inlined = m, inlined
		return nil
	}
	return p.plan(p.kept)
}

// baseline drafts the release out of nothing but the packs that an interrupted push of it has left.
func (s *session) baseline(ctx context.Context, p *parcel) error {
	p.left = nil
	if err := p.plan(nil); err != nil || p.small() {
		return err
	}
	s.say("storing the whole release anew: a new instance would have to gather it from too many places")
	kept, err := p.site.kept(ctx, p.cache, s.cfg.KeepRemote)
	if err != nil {
		return err
	}
	var manifests []*release.Manifest
	for _, k := range kept {
		manifests = append(manifests, k.manifest)
	}
	if err := p.leftovers(ctx, manifests); err != nil {
		return err
	}
	if err := p.plan(nil); err != nil || !p.draft.KeptCost().NeedsBaseline() {
		return err
	}
	p.left = nil // too many places as well
	return p.plan(nil)
}

// rehearse ends a dry run with what a push would do.
func (s *session) rehearse(ctx context.Context, p *parcel, v view, r *Result) error {
	if err := p.plan(p.kept); err != nil { // as it was before anything was built
		return err
	}
	former, err := p.site.former(ctx, v.Pointer, p.parent)
	if err != nil {
		return err
	}
	now := make([]string, len(p.tree.Entries))
	for i, e := range p.tree.Entries {
		now[i] = e.Path
	}
	r.Plan, r.UploadedBytes = newPlan(p.fresh(), former, now, p.tree.Ignored), p.draft.NewBytes
	r.Plan.Baseline = len(p.kept) == 0
	return s.endDry(r)
}

// fresh are the paths of the contents that are to be uploaded.
func (p *parcel) fresh() (paths []string) {
	for i, f := range p.draft.Frames {
		if p.draft.Adopted(i) {
			continue
		}
		for _, part := range f.Parts {
			if len(paths) == 0 || paths[len(paths)-1] != part.Path { // a large file fills frames one after another
				paths = append(paths, part.Path)
			}
		}
	}
	return paths
}
