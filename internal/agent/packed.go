package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// Packed is where the objects of a packed release come from. What GetManifest and GetDelta return has the SHA-256 that was
// asked for; what a range holds is for the reader to verify.
type Packed interface {
	GetManifest(ctx context.Context, id release.ID, want release.Content) ([]byte, error)
	GetDelta(ctx context.Context, id, parent release.ID, want release.Content) ([]byte, error)
	OpenRange(ctx context.Context, src release.Source, offset, length int64) (io.ReadCloser, error)
}

// inspectPacked finds the digest of a packed pointer, which names it itself: no request.
func (m *machine) inspectPacked(p release.Pointer) (string, error) {
	if p.Release.Collides(m.cfg.Active) {
		return "", fmt.Errorf("release id %q is the name of the active link", p.Release)
	}
	return p.Manifest.SHA256, nil
}

// blueprint is what a packed release is built from: its manifest, and the delta, if that was fetched, whose frames need no
// request any more.
type blueprint struct {
	manifest *release.Manifest
	delta    *release.DeltaObject
	source   release.Source // of delta, but for its end
}

// fetchPacked is fetch for a packed release: manifest, what other releases on this disk have, the rest from packs.
func (m *machine) fetchPacked(ctx context.Context, w fleet.Want, progress func(string), end finish) (err error) {
	p := w.Note.Pointer
	if p.Manifest.SHA256 != w.Note.Digest {
		return fmt.Errorf("release %s: its pointer names the manifest %.12s, the fleet agreed on %.12s", p.Release, p.Manifest.SHA256, w.Note.Digest)
	}
	plan, err := m.blueprint(ctx, p)
	if err != nil {
		return err
	}
	if n := plan.manifest.Files(); n != p.Files {
		return &release.Error{What: "manifest", Value: string(p.Release), Rule: fmt.Sprintf("has %d files where the pointer says %d", n, p.Files)}
	}
	s, err := m.disk.StageManifest(ctx, p.Release, w.Note.Digest, plan.manifest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.GiveUp(err)) }()
	err = m.pull(ctx, s, plan, progress)
	if damaged(err) && ctx.Err() == nil {
		// It may have happened on the way. A file that was in many frames has lost all of them, so what is needed is asked anew.
		m.log.Warn("fetching damaged contents once more", "release", string(p.Release), "error", err)
		err = m.pull(ctx, s, plan, progress)
	}
	if err != nil {
		return err
	}
	return end(ctx, s, w)
}

// damaged says whether contents came that are not what the manifest says.
func damaged(err error) bool {
	var broken *release.Error
	return errors.Is(err, disk.ErrContent) || errors.Is(err, store.ErrDamaged) || errors.As(err, &broken)
}

// blueprint finds the manifest that the pointer names: kept here, else from the delta to a release on this disk, else from S3;
// and keeps it. The delta is right only if it gives that very object. Another compressor in push may have written other bytes
// than ours would: then the object itself is read.
func (m *machine) blueprint(ctx context.Context, p release.Pointer) (blueprint, error) {
	if kept := m.manifests.get(p.Manifest.SHA256); kept != nil {
		return blueprint{manifest: kept}, nil
	}
	var plan blueprint
	if err := failpoint.Hit("A6"); err != nil {
		return plan, err
	}
	if digest := m.parent(p.Delta); digest != "" {
		var parent *release.Manifest
		var reading sync.WaitGroup
		reading.Go(func() { parent = m.manifests.get(digest) }) // while the delta comes
		object, err := m.bucket.GetDelta(ctx, p.Release, p.Delta.Parent, p.Delta.Content)
		reading.Wait()
		if err == nil {
			plan, err = m.applied(p, parent, object)
		} else if !errors.Is(err, store.ErrNotFound) { // only what is in the delta alone is lost with it
			return plan, err
		}
		if err == nil {
			return plan, nil
		}
		m.log.Warn("delta not usable, reading the manifest", "release", string(p.Release), "parent", string(p.Delta.Parent), "error", err)
	}
	object, err := m.bucket.GetManifest(ctx, p.Release, *p.Manifest)
	if err != nil {
		return plan, err
	}
	if plan.manifest, err = release.ParseManifest(object); err != nil {
		return plan, fmt.Errorf("release %s: %w", p.Release, err)
	}
	m.manifests.put(p.Manifest.SHA256, object)
	return plan, nil
}

// parent is the digest of the manifest that a delta can be applied to: of a release that is on this disk, and kept. "": none.
func (m *machine) parent(d *release.Delta) string {
	if d == nil {
		return ""
	}
	here, err := m.disk.Releases()
	if err != nil {
		m.log.Warn("no release used as a base", "error", err)
	}
	for _, r := range here {
		if r.ID == d.Parent && m.manifests.has(r.Digest) {
			return r.Digest
		}
	}
	return ""
}

// applied makes a manifest of a delta, and keeps it. One that cannot be applied still has the release's new frames.
func (m *machine) applied(p release.Pointer, parent *release.Manifest, object []byte) (blueprint, error) {
	d, err := release.ParseDelta(object)
	if err != nil {
		return blueprint{}, err
	}
	plan := blueprint{delta: d, source: release.Source{Release: p.Release, Parent: p.Delta.Parent}}
	if parent == nil {
		return plan, errors.New("the parent's manifest is not as it was kept")
	}
	made, err := d.Apply(parent)
	if err != nil {
		return plan, err
	}
	if object, err = made.Encode(); err != nil {
		return plan, err
	}
	if sum := sha256.Sum256(object); hex.EncodeToString(sum[:]) != p.Manifest.SHA256 {
		return plan, &release.Error{What: "delta", Rule: fmt.Sprintf("gives the manifest %x, not the pointer's", sum[:6])}
	}
	m.manifests.put(p.Manifest.SHA256, object)
	plan.manifest = made
	return plan, nil
}
