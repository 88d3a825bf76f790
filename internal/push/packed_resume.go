package push

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
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

// standingPack is a pack that there is.
type standingPack struct {
	store.Stored
	lasts bool // it may be relied on although nobody names it
}

// standingPacks are the packs that there are, by key.
func standingPacks(ctx context.Context, s *store.Store) (map[string]standingPack, error) {
	inventory, err := s.Packs(ctx)
	if err != nil {
		return nil, err
	}
	packs := make(map[string]standingPack, len(inventory.Objects))
	for _, o := range inventory.Objects {
		packs[o.Key] = standingPack{o, s.Reliable(inventory.Age(o))}
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
		if o.lasts && !named[key] {
			candidates = append(candidates, o.Stored)
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

// sound are the manifests without the contents whose packs are gone or cut short: those are stored anew.
func (p *parcel) sound(kept []*release.Manifest) ([]*release.Manifest, error) {
	packs, err := p.standing()
	if err != nil {
		return nil, err
	}
	kept = slices.Clone(kept)
	for i, m := range kept {
		torn := make([]bool, len(m.Sources))
		for n, src := range m.Sources {
			torn[n] = src.Release == "" && packs[src.Key()].Size < src.End
		}
		if !slices.Contains(torn, true) {
			continue
		}
		whole := *m
		whole.Entries = slices.DeleteFunc(slices.Clone(m.Entries), func(e release.Entry) bool {
			first, last := m.Span(&e)
			return slices.ContainsFunc(m.Frames[first:last], func(f release.Frame) bool { return torn[f.Source] })
		})
		kept[i] = &whole
	}
	return kept, nil
}
