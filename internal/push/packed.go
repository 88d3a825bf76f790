package push

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os/user"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// lookFurther is how many bytes the parent may lack before other manifests are read. Up to here everything fits into
// one delta, and the listing and a megabyte for each manifest would cost more than they could save.
const lookFurther = release.MaxInline

// smallBaseline is how many bytes a new baseline may have to go into the delta: a megabyte that instances on the parent fetch in vain
// costs them less than a request more.
const smallBaseline = 1 << 20

// packed says whether a push is of the packed layout.
func (s *session) packed() bool { return cmp.Or(s.layout, s.cfg.Layout) == config.Packed }

// parcel is a packed release on its way.
type parcel struct {
	site    *site
	cache   *cache
	tree    *packedTree
	id      release.ID
	at      time.Time // what the id says
	looked  time.Time // before anything was read from the bucket
	parent  *release.Manifest
	before  release.ID // the parent's id
	anew    bool       // every content is stored, whatever is in the bucket
	kept    bool       // some contents are those of other releases
	draft   *release.Draft
	pointer release.Pointer

	standing func() (map[string]standingPack, error) // the packs that there are, listed once
	left     []leftover
}

// deployPacked makes a packed release of a directory and moves the fleet to it.
func (s *session) deployPacked(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var site *site
	var v view
	var admission errgroup.Group // while the tree is read
	looked := time.Now()
	admission.Go(func() (err error) {
		site, v, err = s.admit(ctx)
		return err
	})
	c := openCache(s.cfg.Scope(), s.arg)
	index := c.loadIndex()
	tree, err := scanPacked(s.arg, s.cfg, index)
	if err != nil {
		cancel()
		_ = admission.Wait() // what is wrong with the tree is what the user can mend
		return err
	}
	defer tree.Close()
	c.saveIndex(index)
	if err := admission.Wait(); err != nil {
		return err
	}
	for _, w := range tree.Warnings {
		s.warn("%s", w)
	}
	if err := v.older(); err != nil {
		return err
	}
	p := &parcel{site: site, cache: c, tree: tree, before: v.Pointer.Release, looked: looked, anew: s.force}
	p.standing = sync.OnceValues(func() (map[string]standingPack, error) { return standingPacks(ctx, site.store) })
	if err := s.compare(ctx, p, v); err != nil {
		return err
	}
	return s.deliver(ctx, p, v, began)
}

// deliver brings the release into the bucket and the fleet to it, unless they are there or this is a dry run.
func (s *session) deliver(ctx context.Context, p *parcel, v view, began time.Time) error {
	r := &Result{Files: countFiles(p.tree.Entries), UnchangedFiles: p.draft.Unchanged, Members: v.Live, began: began}
	same, err := p.unchanged(v)
	if err != nil {
		return err
	}
	if same && !s.force {
		r.Release, r.Sequence, r.Outcome, r.UnchangedFiles = v.Pointer.Release, v.Pointer.Sequence, Unchanged, r.Files
		return s.end(r)
	}
	if err := s.start(p); err != nil {
		return err
	}
	if s.dryRun {
		s.sayPlan(p)
		r.UploadedBytes, r.Outcome = p.draft.NewBytes, DryRun
		return s.end(r)
	}
	sent := p.site.store.Counts().Sent
	if err := s.send(ctx, p); err != nil {
		return uploadError(p.id, err)
	}
	r.Release, r.UploadedBytes = p.id, p.site.store.Counts().Sent-sent
	if err := p.inTime(); err != nil {
		return uploadError(p.id, err)
	}
	return s.rollOut(ctx, p.site, v, p.pointer, r)
}

// inTime fails when what the release builds on may be gone. By the wall clock: a laptop that slept all night is late too.
func (p *parcel) inTime() error {
	if took := time.Now().Round(0).Sub(p.looked.Round(0)); took > p.site.store.PushTime() {
		return advise(fmt.Errorf("it took %s: what it builds on may be gone", span(took)), "push again")
	}
	return nil
}

// compare finds out what of the tree is not in the bucket.
func (s *session) compare(ctx context.Context, p *parcel, v view) (err error) {
	p.at = time.Now().UTC().Truncate(time.Second)
	if s.clock != nil {
		p.at = s.clock()
	}
	if p.id = release.NewID(p.at); p.id == v.Pointer.Release {
		p.at = p.at.Add(time.Second) // and is waited for
		p.id = release.NewID(p.at)
	}
	if p.parent, err = s.parent(ctx, p.site, p.cache, v.Pointer); err != nil {
		return err
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
	p.kept = len(kept) > 0
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

func countFiles(entries []release.Entry) int {
	return (&release.Manifest{Entries: entries}).Files()
}

// start begins the pointer. What it would be refused for, such as a long message, is better known before an upload.
func (s *session) start(p *parcel) error {
	p.pointer = release.Pointer{
		Release: p.id, Files: countFiles(p.tree.Entries), Scope: s.cfg.Scope(), Author: author(),
		Policy: release.Policy{Waves: s.cfg.Rollout.Waves, Bake: s.cfg.Rollout.Bake, Approve: s.cfg.Rollout.Approve},
	}
	full := p.pointer
	full.Sequence, full.Message, full.Commit = math.MaxInt64, s.message, s.commit
	full.Policy.MaxExcluded = cmp.Or(s.maxExcluded, s.cfg.Rollout.MaxExcluded)
	any := contentOf(nil)
	any.Length = release.MaxManifest
	full.Manifest, full.Delta = &any, &release.Delta{Parent: cmp.Or(p.before, p.id), Content: any}
	_, err := s.text(full)
	return err
}

// sayPlan says what a push would do.
func (s *session) sayPlan(p *parcel) {
	var fresh, removed []string
	seen := map[string]bool{}
	for i, f := range p.draft.Frames {
		if p.draft.Adopted(i) {
			continue
		}
		for _, part := range f.Parts {
			if !seen[part.Path] {
				seen[part.Path] = true
				fresh = append(fresh, part.Path)
			}
		}
	}
	if p.parent != nil {
		for _, e := range p.parent.Entries {
			if _, still := slices.BinarySearchFunc(p.tree.Entries, e.Path, func(e release.Entry, path string) int {
				return release.ComparePaths(e.Path, path)
			}); !still {
				removed = append(removed, e.Path)
			}
		}
	}
	s.say("new contents: %s, %s before compression%s", count(len(fresh), "file"), amount(p.draft.NewBytes), abridged("+", fresh))
	s.say("removed: %s%s", count(len(removed), "path"), abridged("-", removed))
	s.say("ignored: %s%s", count(len(p.tree.Ignored), "path"), abridged("!", p.tree.Ignored))
}

// send puts everything into the bucket but the pointer, which it makes.
func (s *session) send(ctx context.Context, p *parcel) error {
	ctx, cancel := context.WithTimeout(ctx, p.site.store.PushTime())
	defer cancel()
	if s.clock == nil {
		if err := waitUntil(ctx, p.at); err != nil {
			return err
		}
	}
	s.say("uploading %s of %s, %s before compression", count(p.draft.NewFiles, "new file"), p.id, amount(p.draft.NewBytes))
	began := time.Now()
	m, inlined, err := s.pack(ctx, p, p.parent != nil)
	if err != nil {
		return err
	}
	if p.kept && m.FreshCost().NeedsBaseline() {
		if err := p.plan(nil); err != nil {
			return err
		}
		inline := p.parent != nil && p.draft.NewBytes <= smallBaseline
		if !inline {
			s.say("storing the whole release anew: a new instance would have to gather it from too many places")
		}
		if m, inlined, err = s.pack(ctx, p, inline); err != nil {
			return err
		}
	}
	if err := s.describe(ctx, p, m, inlined); err != nil {
		return err
	}
	s.say("uploaded in %s", span(time.Since(began)))
	return nil
}

// waitUntil waits for the time that a release is named after.
func waitUntil(ctx context.Context, t time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(t)):
		return nil
	}
}

// pack uploads the draft's new contents as packs, unless they may and can go into the delta.
func (s *session) pack(ctx context.Context, p *parcel, inline bool) (m *release.Manifest, inlined bool, err error) {
	packing := newPacking(p)
	stop := s.progress(p.draft.NewBytes, packing.counts)
	err = packing.run(ctx, func(packer *release.Packer) *release.Pack {
		if inlined = inline && packer.Inline(p.id, p.before); inlined {
			return nil
		}
		return packer.Flush()
	})
	stop()
	if err != nil {
		return nil, false, err
	}
	if err := packing.recheck(ctx); err != nil {
		return nil, false, err
	}
	m, err = p.draft.Manifest()
	return m, inlined, err
}

// describe writes delta and manifest, and makes the pointer that names them. A delta that saves nothing is left out.
func (s *session) describe(ctx context.Context, p *parcel, m *release.Manifest, inlined bool) error {
	object, err := m.Encode()
	if err != nil {
		return err
	}
	content := contentOf(object)
	p.pointer.Manifest = &content
	if p.parent != nil {
		delta, err := p.draft.Delta(m, p.parent)
		if err != nil {
			return err
		}
		if inlined || len(delta) < len(object) {
			if err := p.site.store.PutDelta(ctx, p.id, p.before, delta); err != nil {
				return err
			}
			p.pointer.Delta = &release.Delta{Parent: p.before, Content: contentOf(delta)}
		}
	}
	if err := p.inTime(); err != nil { // later pushes build on every manifest that is there
		return err
	}
	if err := failpoint.Hit("PU2"); err != nil {
		return err
	}
	if err := p.site.store.PutManifest(ctx, p.id, object); err != nil {
		return err
	}
	p.cache.keepManifest(p.id, object)
	return nil
}

func contentOf(object []byte) release.Content {
	sum := sha256.Sum256(object)
	return release.Content{SHA256: hex.EncodeToString(sum[:]), Length: int64(len(object))}
}

// author is who pushes, for people; the pointer has room for a name, not for a novel.
func author() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username[:min(len(u.Username), 64)]
}

// uploadError says what an upload failed for.
func uploadError(id release.ID, err error) error {
	err = fmt.Errorf("upload release %q: %w", id, err)
	if errors.Is(err, store.ErrExists) { // two pushes in one second have the same id
		err = kind{errConflict, advise(err, "another push used the same id: push again")}
	}
	return err
}
