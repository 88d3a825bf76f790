package push

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// Cleaned is what -gc reports; its JSON form is stable.
type Cleaned struct {
	Outcome Outcome `json:"outcome"` // done or dry_run
	Kept    int     `json:"kept"`    // releases that can be deployed
	// Dropped are the releases that cannot be deployed any more from now on; their contents are deleted after the grace.
	Dropped []release.ID `json:"dropped"`
	// Deleted is how many objects went, or in a dry run would go now, and DeletedBytes their size; without the objects of
	// plain releases in a dry run, which are Cleared.
	Deleted      int          `json:"deleted"`
	DeletedBytes int64        `json:"deleted_bytes"`
	Cleared      []release.ID `json:"cleared"` // plain releases whose objects went
}

// cleaner removes from a bucket what nobody needs any more, as package store says: it drops releases, and deletes what
// was dropped long enough ago. Several may run at once, beside pushes and rollouts, and each may die at any moment.
type cleaner struct {
	site  *site
	cache *cache
	keep  int // of the newest releases
	dry   bool
	warn  func(format string, args ...any)

	now      time.Time // S3's clock
	releases []standing
	done     Cleaned
}

// age is how long ago something was written.
func (c *cleaner) age(modified time.Time) time.Duration { return c.now.Sub(modified) }

// gc cleans the bucket up and says what that did.
func (s *session) gc(ctx context.Context) error {
	site, err := s.open(ctx)
	if err != nil {
		return err
	}
	c := &cleaner{site: site, cache: openCache(s.cfg.Scope(), ""), keep: s.cfg.KeepRemote, dry: s.dryRun, warn: s.warn}
	err = c.run(ctx)
	s.sayCleaned(&c.done, err)
	if s.json && err == nil {
		return s.object(&c.done)
	}
	return err
}

// sayCleaned says what went, also where an error came after it.
func (s *session) sayCleaned(d *Cleaned, err error) {
	did := [2]string{"dropped", "deleted"}
	if d.Outcome == DryRun {
		did = [2]string{"would drop", "would delete"}
	}
	for _, id := range d.Dropped {
		s.say("%s %s: its contents go %s later", did[0], id, hours(store.Grace))
	}
	for _, id := range d.Cleared {
		s.say("%s the files of %s", did[1], id)
	}
	if err == nil || d.Deleted > 0 {
		s.say("%s %s (%s); %s can be deployed", did[1], count(d.Deleted, "object"), amount(d.DeletedBytes), count(d.Kept, "release"))
	}
}

func hours(d time.Duration) string { return count(int(d.Hours()), "hour") }

// run drops and deletes. Its error is the first thing that went wrong; what can be done without it is done.
func (c *cleaner) run(ctx context.Context) error {
	c.done = Cleaned{Outcome: Done, Dropped: []release.ID{}, Cleared: []release.ID{}}
	if c.dry {
		c.done.Outcome = DryRun
	}
	named, err := c.named(ctx)
	if err != nil {
		return err
	}
	if c.releases, c.now, err = c.site.standing(ctx, c.cache); err != nil {
		return err
	}
	for _, r := range c.releases {
		if r.broken != nil { // what it needs is not known
			return advise(r.broken, "a newer version of push may have written it; if nobody needs it, remove it from the bucket")
		}
	}
	if c.now.IsZero() {
		return errors.New("S3 does not say what time it is")
	}
	doomed, err := c.doomed(ctx, named)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("PU6"); err != nil {
		return err
	}
	if err := c.drop(ctx, doomed); err != nil {
		return err
	}
	for i := range c.releases {
		if c.releases[i].deployable() {
			c.done.Kept++
		}
	}
	err = c.sweep(ctx)
	if errors.Is(err, store.ErrStale) {
		err = advise(err, "the clean-up took too long, or this machine slept meanwhile: the next one goes on")
	}
	return err
}

// named are the releases that somebody names: the pointer, the head, an instance. Where that cannot be told, nothing is cleaned.
func (c *cleaner) named(ctx context.Context) (map[release.ID]bool, error) {
	v := c.site.look(ctx)
	if err := errors.Join(v.err(), v.newer()); err != nil {
		return nil, err
	}
	if v.Garbage != nil {
		return nil, fmt.Errorf("read pointer: %w", v.Garbage)
	}
	if v.Pointer.Release == "" {
		return nil, advise(errors.New("there is no pointer: what the fleet needs cannot be told"), "push first; nothing is cleaned up before")
	}
	return v.named(), nil
}

// named are the releases that the pointer, the head or an instance names.
func (v view) named() map[release.ID]bool {
	h := v.Head
	names := map[release.ID]bool{
		v.Pointer.Release: true, h.Release: true, h.CommittedRelease: true, h.Good.Release: true, h.Before.Release: true,
	}
	for _, m := range v.Members {
		names[m.Vote.Release], names[m.Active.Release] = true, true
	}
	return names
}

// doomed are the releases to drop: those that nobody names, that are not among the newest, and older than the grace.
func (c *cleaner) doomed(ctx context.Context, named map[release.ID]bool) ([]*standing, error) {
	var doomed []*standing
	newest := 0
	for i := range c.releases {
		r := &c.releases[i]
		if !r.deployable() {
			continue
		}
		if newest++; newest <= c.keep || named[r.id] {
			continue
		}
		old, err := c.old(ctx, r)
		if err != nil {
			return nil, err
		}
		if old {
			doomed = append(doomed, r)
		}
	}
	return doomed, nil
}

// old says whether nothing of a release was written within the grace.
func (c *cleaner) old(ctx context.Context, r *standing) (bool, error) {
	grace := c.site.store.Grace()
	if r.packed {
		return c.age(r.stored.Modified) > grace, nil
	}
	listing, err := c.site.store.List(ctx, r.id)
	young := slices.ContainsFunc(listing, func(o release.Object) bool { return c.age(o.Modified) <= grace })
	return !young, err
}

// drop puts tombstones, and looks again: a pointer may have gone back to one of these releases meanwhile. Who writes a pointer looks
// for a tombstone afterwards, so one of the two sees the other.
func (c *cleaner) drop(ctx context.Context, doomed []*standing) error {
	if c.dry {
		for _, r := range doomed {
			c.done.Dropped, r.dropped, r.stored.Modified = append(c.done.Dropped, r.id), true, c.now
		}
		return nil
	}
	objects := make([][]byte, len(doomed))
	for i, r := range doomed {
		var err error
		objects[i], err = c.bury(ctx, r)
		if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound) {
			continue // another clean-up was first, or took it back
		}
		if err != nil {
			return err
		}
		r.dropped, r.stored.Modified = true, c.now
	}
	if len(doomed) == 0 {
		return nil
	}
	named, err := c.named(ctx)
	if err != nil {
		return err
	}
	for i, r := range doomed {
		switch {
		case r.dropped && named[r.id]:
			if err := c.site.store.Restore(ctx, r.id, objects[i]); err != nil {
				return err
			}
			r.dropped = false
		case r.dropped:
			c.done.Dropped = append(c.done.Dropped, r.id)
		}
	}
	return nil
}

// bury puts a tombstone for a release, and returns the manifest that it replaced.
func (c *cleaner) bury(ctx context.Context, r *standing) ([]byte, error) {
	if !r.packed {
		return nil, c.site.store.DropPlain(ctx, r.id)
	}
	found, err := c.site.store.FindManifest(ctx, r.id)
	if err == nil && found.Stored.ETag != r.stored.ETag {
		err = store.ErrChanged
	}
	if err != nil {
		return nil, err
	}
	return found.Object, c.site.store.WriteTombstone(ctx, r.stored, r.sources)
}

// sweep deletes what only releases need that were dropped longer than the grace ago, and what belongs to none; the
// tombstones last, so that who dies in between is not forgotten.
func (c *cleaner) sweep(ctx context.Context) error {
	var old []store.Stored
	for _, list := range []func(context.Context) (store.Inventory, error){c.site.store.Packs, c.site.store.Deltas} {
		inventory, err := list(ctx)
		if err == nil && inventory.Date.After(c.site.store.Holds(c.now)) {
			err = store.ErrStale
		}
		if err != nil {
			return err
		}
		for _, o := range inventory.Objects {
			if inventory.Age(o) > c.site.store.Grace() {
				old = append(old, o)
			}
		}
	}
	if err := c.spare(ctx); err != nil {
		return err
	}
	needed, dead := map[string]bool{}, []*standing{}
	alive := map[release.ID]bool{} // releases whose deltas are needed
	for i := range c.releases {
		r := &c.releases[i]
		if r.dropped && !r.spared && c.age(r.stored.Modified) > c.site.store.Grace() {
			dead = append(dead, r)
			continue
		}
		alive[r.id] = true
		for _, key := range r.keys {
			needed[key] = true
		}
	}
	objects := slices.DeleteFunc(old, func(o store.Stored) bool { return needed[o.Key] || o.Release != "" && alive[o.Release] })
	if err := c.delete(ctx, objects); err != nil {
		return err
	}
	graves := []store.Stored{}
	for _, r := range dead {
		if r.plain {
			err := c.clear(ctx, r.id)
			if errors.Is(err, store.ErrYoung) {
				continue // somebody writes to it
			}
			if err != nil {
				return err
			}
		}
		graves = append(graves, r.stored)
	}
	return c.delete(ctx, graves)
}

// spare keeps dropped releases that somebody names: who put the pointer back knew nothing of tombstones, or died before it took
// the drop back. Of the plain layout everything is still there, and the release can be deployed again.
func (c *cleaner) spare(ctx context.Context) error {
	if !slices.ContainsFunc(c.releases, func(r standing) bool { return r.dropped }) {
		return nil
	}
	named, err := c.named(ctx)
	if err != nil {
		return err
	}
	for i := range c.releases {
		r := &c.releases[i]
		if !r.dropped || !named[r.id] {
			continue
		}
		r.spared = true
		c.warn("%s was dropped, but the pointer, the head or an instance names it: nothing of it is deleted; deploy another release", r.id)
		if r.plain && len(r.keys) == 0 && !c.dry {
			if err := c.site.store.Restore(ctx, r.id, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// delete deletes objects, several at a time, and counts them.
func (c *cleaner) delete(ctx context.Context, objects []store.Stored) error {
	var n, size atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, o := range objects {
		g.Go(func() error {
			var err error
			if !c.dry {
				err = c.site.store.Delete(gctx, o, c.site.store.Holds(c.now))
			}
			if errors.Is(err, store.ErrYoung) || errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrExists) {
				return nil // a push needs it again
			}
			if err == nil {
				n.Add(1)
				size.Add(o.Size)
			}
			return err
		})
	}
	err := g.Wait()
	c.done.Deleted, c.done.DeletedBytes = c.done.Deleted+int(n.Load()), c.done.DeletedBytes+size.Load()
	return err
}

// clear deletes the files of a plain release.
func (c *cleaner) clear(ctx context.Context, id release.ID) error {
	if !c.dry {
		n, size, err := c.site.store.Clear(ctx, id, c.site.store.Holds(c.now))
		c.done.Deleted, c.done.DeletedBytes = c.done.Deleted+n, c.done.DeletedBytes+size
		if err != nil {
			return err
		}
	}
	c.done.Cleared = append(c.done.Cleared, id)
	return nil
}

// cleanEvery is how often pushes from one machine clean up, and cleanTime how long that may take: what has to go has waited
// for a day, so more often is not worth its requests.
const (
	cleanEvery = time.Hour
	cleanTime  = 5 * time.Minute
)

// tidy cleans up after a push, best effort: what it could not do the next one does.
func (s *session) tidy(ctx context.Context, site *site) {
	c := &cleaner{site: site, cache: openCache(s.cfg.Scope(), ""), keep: s.cfg.KeepRemote, warn: s.warn}
	if !c.cache.due(cleanEvery) {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	if err := c.run(bounded); err != nil && ctx.Err() == nil {
		s.warn("the bucket was not cleaned up: %v", err)
	}
}

// undrop takes back that a clean-up dropped a release in the moment in which the pointer went back to it.
func (s *session) undrop(ctx context.Context, site *site, id release.ID) error {
	if err := site.store.Restore(ctx, id, s.back); err != nil {
		return advise(fmt.Errorf("check release %q: a clean-up dropped it meanwhile: %w", id, err), "push again, or go back to another release")
	}
	return nil
}
