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
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

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
	before  release.ID          // the parent's id
	anew    bool                // every content is stored, whatever is in the bucket
	kept    []*release.Manifest // what the draft takes contents from; none: a baseline
	draft   *release.Draft
	built   *release.Manifest // the draft's, if what is new was built and fits into the delta
	inlined bool              // and is not nothing
	pointer release.Pointer

	standing func() (map[string]standingPack, error) // the packs that there are, listed once
	left     []leftover
}

// deployPacked makes a packed release of a directory and moves the fleet to it.
func (s *session) deployPacked(ctx context.Context, cancel func()) error {
	began := time.Now() // before anything was read from the bucket, too
	c := openCache(s.cfg.Scope(), s.arg)
	var tree *packedTree
	var saving sync.WaitGroup
	defer saving.Wait()
	site, v, err := s.admitWhile(ctx, cancel, func() (err error) {
		index := c.loadIndex()
		tree, err = scanPacked(s.arg, s.cfg, index)
		saving.Go(func() { c.saveIndex(index) }) // also of a tree that is refused: what was read need not be read again
		return err
	})
	if tree != nil {
		defer tree.Close()
	}
	if err != nil {
		return err
	}
	for _, w := range tree.Warnings {
		s.warn("%s", w)
	}
	if err := v.older(); err != nil {
		return err
	}
	p := &parcel{site: site, cache: c, tree: tree, before: v.Pointer.Release, looked: began, anew: s.force}
	p.standing = sync.OnceValues(func() (map[string]standingPack, error) { return standingPacks(ctx, site.store) })
	if err := s.compare(ctx, p, v); err != nil {
		return err
	}
	return s.deliver(ctx, p, v, began)
}

// deliver brings the release into the bucket and the fleet to it, unless they are there or this is a dry run.
func (s *session) deliver(ctx context.Context, p *parcel, v view, began time.Time) error {
	files := countFiles(p.tree.Entries)
	same, err := p.unchanged(v)
	if err != nil {
		return err
	}
	if same && !s.force {
		return s.endUnchanged(v, files, p.tree.Ignored)
	}
	r := &Result{Files: files, UnchangedFiles: p.draft.Unchanged, Members: v.Live, began: began}
	if err := s.start(p); err != nil {
		return err
	}
	if err := s.settle(ctx, p); err != nil {
		return err
	}
	if s.dryRun {
		return s.rehearse(ctx, p, v, r)
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
	if p.built == nil {
		if err := s.pack(ctx, p); err != nil {
			return err
		}
	}
	err := s.describe(ctx, p)
	if errors.Is(err, errSlow) {
		// What was given up may be there all the same, by an earlier try whose reply was lost. It stays what it is, so its name is used up.
		p.name(p.at.Add(time.Second))
		p.pointer.Release = p.id
		s.say("uploading it in pieces, as %s: what a slow line has taken of one is not lost when it breaks", p.id)
		if err = s.compareAll(ctx, p, []*release.Manifest{p.parent}); err == nil {
			err = s.pack(ctx, p)
		}
		if err == nil {
			err = s.describe(ctx, p)
		}
	}
	if err != nil {
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

// pack uploads the draft's new contents as packs, but a small baseline is put into the delta.
func (s *session) pack(ctx context.Context, p *parcel) (err error) {
	packing := newPacking(p, release.MinPackSize)
	stop := s.progress(p.draft.NewBytes, packing.counts)
	p.inlined, err = packing.run(ctx, p.small())
	stop()
	if err != nil {
		return err
	}
	if err := packing.recheck(ctx); err != nil {
		return err
	}
	p.built, err = p.draft.Manifest()
	return err
}

// describe writes delta and manifest, and makes the pointer that names them. A delta that saves nothing is left out.
func (s *session) describe(ctx context.Context, p *parcel) error {
	var object []byte
	var encoding errgroup.Group
	encoding.Go(func() (err error) { // while the delta is made and, where it carries contents, sent
		object, err = p.built.Encode()
		return err
	})
	delta, err := p.change()
	if err == nil && !p.inlined {
		if err = encoding.Wait(); len(delta) >= len(object) {
			delta = nil
		}
	}
	if err == nil && delta != nil {
		err = s.putDelta(ctx, p, delta)
	}
	if err = cmp.Or(err, encoding.Wait()); err != nil {
		return err
	}
	if delta != nil {
		p.pointer.Delta = &release.Delta{Parent: p.before, Content: contentOf(delta)}
	}
	content := contentOf(object)
	p.pointer.Manifest = &content
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

// change is the delta to the parent; nil where there is no parent.
func (p *parcel) change() ([]byte, error) {
	if p.parent == nil {
		return nil, nil
	}
	return p.draft.Delta(p.built, p.parent)
}

// errSlow ends the upload of a delta whose contents are better packed.
var errSlow = errors.New("the line is slow for one object")

// worthPacks is how many times as long as a pack a delta's upload may still take.
const worthPacks = 3

// putDelta writes the delta. An upload begins anew when the line breaks: one that carries more than a pack's worth of contents is given
// up as soon as the line turns out to be so slow that this would cost minutes.
func (s *session) putDelta(ctx context.Context, p *parcel, delta []byte) error {
	var sent atomic.Int64
	var watch sync.WaitGroup
	defer watch.Wait()
	ctx, cancel := context.WithCancelCause(store.WithProgress(ctx, func(n int64) { sent.Add(n) }))
	defer cancel(nil)
	if p.inlined && len(p.kept) > 0 && len(delta) > release.MinPackSize {
		watch.Go(func() {
			ticker := time.NewTicker(packTime)
			defer ticker.Stop()
			tick := cmp.Or(s.judges, ticker.C)
			for last := int64(0); ; {
				select {
				case <-ctx.Done():
					return
				case <-tick:
				}
				now := sent.Load()
				if int64(len(delta))-now > worthPacks*(now-last) {
					cancel(errSlow)
				}
				last = now
			}
		})
	}
	err := p.site.store.PutDelta(ctx, p.id, p.before, delta)
	if err != nil && context.Cause(ctx) == errSlow {
		return errSlow
	}
	return err
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
