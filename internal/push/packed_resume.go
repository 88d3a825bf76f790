package push

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// leftover is a pack that no kept release needs: one that was uploaded by a push that was interrupted, mostly.
type leftover struct {
	sum   release.Sum
	index []release.IndexFrame
}

// standingPacks are the packs that there are, by key; those that may not be relied on have no size.
func standingPacks(ctx context.Context, s *store.Store) (map[string]store.Stored, error) {
	inventory, err := s.Packs(ctx)
	if err != nil {
		return nil, err
	}
	packs := make(map[string]store.Stored, len(inventory.Objects))
	for _, o := range inventory.Objects {
		if !s.Reliable(inventory.Age(o)) {
			o.Size = 0
		}
		packs[o.Key] = o
	}
	return packs, nil
}

// leftovers reads the indexes of the packs that may be relied on and that none of these manifests names. What cannot be read
// as a pack is left alone; whether contents are what an index says is verified by whoever fetches them, as always.
func (p *parcel) leftovers(ctx context.Context, kept []*release.Manifest) error {
	packs, err := p.standing()
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, m := range kept {
		for _, src := range m.Sources {
			named[src.Key()] = true
		}
	}
	var candidates []store.Stored
	for key, o := range packs {
		if o.Size > 0 && !named[key] {
			candidates = append(candidates, o)
		}
	}
	p.left = make([]leftover, len(candidates))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, o := range candidates {
		g.Go(func() error {
			index, err := p.site.store.PackIndex(gctx, o)
			var broken *release.Error
			if errors.As(err, &broken) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDamaged) {
				return nil
			}
			sum, _ := hex.DecodeString(strings.TrimPrefix(o.Key, "p/")) // the listing has seen to it
			p.left[i] = leftover{release.Sum(sum), index}
			return err
		})
	}
	return g.Wait()
}
