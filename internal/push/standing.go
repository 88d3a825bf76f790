package push

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// standing is what the bucket has of one release.
type standing struct {
	id      release.ID
	plain   bool         // there are objects of the plain layout
	stored  store.Stored // of what is in the manifest's place; zero: nothing
	dropped bool         // that is a tombstone
	spared  bool         // it was dropped, and is named all the same
	packed  bool         // that is a manifest
	files   int          // of a manifest
	bytes   int64        // of a manifest's files
	sources []release.Source
	keys    []string // of packs and deltas that it is or was made of
	broken  error    // why what stands there is neither
}

// deployable says whether it is a release that can be deployed. Of the plain layout only a folder whose name is a time is
// one for sure: any other could be somebody else's.
func (r *standing) deployable() bool {
	_, ours := r.id.Time()
	return !r.dropped && (r.packed || ours)
}

// standing reads what there is of every release, newest first by name, and S3's clock.
func (s *site) standing(ctx context.Context, c *cache) ([]standing, time.Time, error) {
	var plain []release.ID
	var packed store.Inventory
	var plainErr, packedErr error
	var both sync.WaitGroup
	both.Go(func() { plain, plainErr = s.store.Releases(ctx) })
	both.Go(func() { packed, packedErr = s.store.Manifests(ctx) })
	both.Wait()
	if err := errors.Join(plainErr, packedErr); err != nil {
		return nil, time.Time{}, err
	}
	list := make([]standing, len(packed.Objects), len(packed.Objects)+len(plain))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, o := range packed.Objects {
		r := &list[i]
		*r = standing{id: o.Release, stored: o, plain: slices.Contains(plain, o.Release)}
		g.Go(func() error { return r.read(gctx, s.store, c) })
	}
	if err := g.Wait(); err != nil {
		return nil, time.Time{}, err
	}
	for _, id := range plain {
		if !slices.ContainsFunc(packed.Objects, func(o store.Stored) bool { return o.Release == id }) {
			list = append(list, standing{id: id, plain: true})
		}
	}
	list = slices.DeleteFunc(list, func(r standing) bool { return !r.plain && r.stored.Key == "" })
	slices.SortFunc(list, func(a, b standing) int { return strings.Compare(string(b.id), string(a.id)) })
	return list, packed.Date, nil
}

// read finds out what stands in a manifest's place.
func (r *standing) read(ctx context.Context, s *store.Store, c *cache) error {
	object := c.manifest(r.id, isMD5(r.stored.ETag))
	if object == nil {
		found, err := s.FindManifest(ctx, r.id)
		if errors.Is(err, store.ErrNotFound) { // another clean-up was here
			r.stored = store.Stored{}
			return nil
		}
		if errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrTooLarge) {
			r.broken = err
			return nil
		}
		if err != nil {
			return err
		}
		r.stored, r.dropped, r.keys, object = found.Stored, found.Dropped, found.Keys, found.Object
		if r.dropped {
			return nil
		}
		c.keepManifest(r.id, object)
	}
	m, err := release.ParseManifest(object)
	if err != nil {
		r.broken = fmt.Errorf("read manifest %q: %w", r.id, err)
		return nil
	}
	r.packed, r.files, r.bytes, r.sources = true, m.Files(), m.Bytes(), m.Sources
	for _, src := range m.Sources {
		r.keys = append(r.keys, src.Key())
	}
	return nil
}
