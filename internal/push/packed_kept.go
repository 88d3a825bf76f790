package push

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// readers is how many manifests are read at once.
const readers = 8

// keptRelease is a release of the packed layout that the bucket has.
type keptRelease struct {
	id       release.ID
	manifest *release.Manifest
}

// parent is the manifest of the pointer's release, nil where that has none. One that is gone or damaged is none either,
// with a warning: then this push stores what it needs anew.
func (s *session) parent(ctx context.Context, site *site, c *cache, p release.Pointer) (*release.Manifest, error) {
	if p.Release == "" || p.Plain() {
		return nil, nil
	}
	object := c.manifest(p.Release, is256(p.Manifest.SHA256))
	var err error
	if object == nil {
		if object, err = site.store.GetManifest(ctx, p.Release, *p.Manifest); err == nil {
			c.keepManifest(p.Release, object)
		}
	}
	var m *release.Manifest
	if err == nil {
		m, err = release.ParseManifest(object)
	}
	var broken *release.Error
	for _, which := range []error{store.ErrNotFound, store.ErrDamaged, store.ErrTooLarge} {
		if errors.Is(err, which) || errors.As(err, &broken) {
			s.warn("the pointer's release cannot be compared with: %v", err)
			return nil, nil
		}
	}
	return m, err
}

// kept reads the manifests of the newest releases, at most so many, newest first; without those that were dropped or
// cannot be read as manifests.
func (s *site) kept(ctx context.Context, c *cache, most int) ([]keptRelease, error) {
	inventory, err := s.store.Manifests(ctx)
	if err != nil {
		return nil, err
	}
	objects := inventory.Objects
	slices.SortFunc(objects, func(a, b store.Stored) int { return strings.Compare(string(b.Release), string(a.Release)) })
	objects = objects[:min(most, len(objects))]
	found := make([]keptRelease, len(objects))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, o := range objects {
		g.Go(func() error {
			object := c.manifest(o.Release, isMD5(o.ETag))
			if object == nil {
				stands, err := s.store.FindManifest(gctx, o.Release)
				if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrDamaged) || stands.Dropped {
					return nil
				}
				if err != nil {
					return err
				}
				object = stands.Object
				c.keepManifest(o.Release, object)
			}
			if m, err := release.ParseManifest(object); err == nil {
				found[i] = keptRelease{o.Release, m}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(k keptRelease) bool { return k.manifest == nil }), nil
}

// former are the paths of the pointer's release; m is its manifest, where it has one that can be read.
func (s *site) former(ctx context.Context, p release.Pointer, m *release.Manifest) (paths []string, err error) {
	if m != nil {
		for _, e := range m.Entries {
			paths = append(paths, e.Path)
		}
	}
	if p.Release == "" || !p.Plain() {
		return paths, nil
	}
	listing, err := s.store.List(ctx, p.Release)
	for _, o := range listing {
		paths = append(paths, o.Path)
	}
	return paths, err
}

// known are the ids of the releases in the bucket, of both layouts, newest first by name, each once. A packed one may
// have been dropped: only its manifest tells.
func (s *site) known(ctx context.Context) ([]release.ID, error) {
	var plain []release.ID
	var packed store.Inventory
	var plainErr, packedErr error
	var both sync.WaitGroup
	both.Go(func() { plain, plainErr = s.store.Releases(ctx) })
	both.Go(func() { packed, packedErr = s.store.Manifests(ctx) })
	both.Wait()
	if err := errors.Join(plainErr, packedErr); err != nil {
		return nil, err
	}
	for _, o := range packed.Objects {
		plain = append(plain, o.Release)
	}
	return newestFirst(plain), nil
}

// newestFirst sorts ids by name, each once.
func newestFirst(ids []release.ID) []release.ID {
	slices.SortFunc(ids, func(a, b release.ID) int { return strings.Compare(string(b), string(a)) })
	return slices.Compact(ids)
}

// errDropped says that a release was removed from the bucket on purpose.
var errDropped = errors.New("it was dropped: its contents may be gone")

// earlier is the pointer to a release that is in the bucket, complete as far as can be told: of the packed
// layout where it has a manifest, which must be the one that the fleet ran on, if it ever did. The manifest comes with it.
func (s *site) earlier(ctx context.Context, id release.ID, logs []fleet.Log) (p release.Pointer, manifest []byte, err error) {
	p.Release = id
	stands, err := s.store.FindManifest(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		p.Files, err = s.complete(ctx, id, logs)
		return p, nil, err
	}
	if err != nil {
		return p, nil, err
	}
	if stands.Dropped {
		return p, nil, fmt.Errorf("read manifest %q: %w", id, errDropped)
	}
	m, err := release.ParseManifest(stands.Object)
	if err != nil {
		return p, nil, fmt.Errorf("read manifest %q: %w", id, err)
	}
	p.Files, p.Manifest, p.Scope = m.Files(), &stands.Content, s.cfg.Scope()
	note, err := s.ranOn(ctx, id, logs)
	if err != nil {
		return p, nil, err
	}
	if note != nil && note.Pointer.Manifest != nil && *note.Pointer.Manifest != stands.Content {
		return p, nil, fmt.Errorf("check release %q: its manifest is not the one that the fleet ran on", id)
	}
	return p, stands.Object, nil
}

// choose is the pointer to the release that was named, or to the one that a rollback goes to by itself among those that
// were not dropped.
func (s *session) choose(ctx context.Context, site *site, v view, logs []fleet.Log, known []release.ID) (p release.Pointer, err error) {
	for {
		target, err := s.target(v, logs, known)
		if err != nil {
			return release.Pointer{}, advise(fmt.Errorf("choose release: %w", err), exist(known))
		}
		p, s.back, err = site.earlier(ctx, target, logs)
		if err == nil {
			err = site.vouched(ctx, v, p, logs)
		}
		if s.arg != "" || !errors.Is(err, errDropped) {
			return p, err
		}
		known = slices.DeleteFunc(slices.Clone(known), func(id release.ID) bool { return id == target })
	}
}

// ranOn is the note of the last epoch of a release that ended well; nil where none is known.
func (s *site) ranOn(ctx context.Context, id release.ID, logs []fleet.Log) (*fleet.Note, error) {
	for _, l := range slices.Backward(logs) {
		if l.Release == id && l.Outcome == string(fleet.Done) {
			return s.ledger.Note(ctx, l.Sequence)
		}
	}
	return nil, nil
}

// printManifest prints the list of files of a release, by default of the pointer's.
func (s *session) printManifest(ctx context.Context) error {
	site, err := s.open(ctx)
	if err != nil {
		return err
	}
	id := release.ID(s.arg)
	if id == "" {
		read, err := site.store.Pointer(ctx, "")
		if err != nil {
			return err
		}
		p, err := release.ParsePointer(read.Text)
		if err != nil {
			return fmt.Errorf("read pointer: %w", err)
		}
		id = p.Release
		if !p.Plain() { // the pointer says which bytes they are
			object, err := site.store.GetManifest(ctx, id, *p.Manifest)
			if err != nil {
				return err
			}
			return s.printObject(id, object)
		}
	}
	if id, err = release.ParseID(string(id)); err != nil {
		return kind{errUsage, err}
	}
	stands, err := site.store.FindManifest(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return advise(err, "only releases of the packed layout have a manifest; `push -releases` lists what is in the bucket")
	}
	if err == nil && stands.Dropped {
		err = fmt.Errorf("read manifest %q: %w", id, errDropped)
	}
	if err != nil {
		return err
	}
	return s.printObject(id, stands.Object)
}

func (s *session) printObject(id release.ID, object []byte) error {
	m, err := release.ParseManifest(object)
	if err != nil {
		return fmt.Errorf("read manifest %q: %w", id, err)
	}
	return m.WriteJSON(s.stdout, id)
}
