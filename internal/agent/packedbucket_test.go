package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// object reads a packed object of the bucket in memory.
func (b *bucket) object(ctx context.Context, key string) (string, error) {
	if err := b.ask(ctx, key); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	body, ok := b.bodies[key]
	if !ok {
		return "", fmt.Errorf("read %s: %w", key, store.ErrNotFound)
	}
	b.fetched[key]++
	return body, nil
}

// whole reads an object as package store does: of that length and sum, or not at all.
func (b *bucket) whole(ctx context.Context, key string, want release.Content) ([]byte, error) {
	body, err := b.object(ctx, key)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256([]byte(body)); int64(len(body)) != want.Length || hex.EncodeToString(sum[:]) != want.SHA256 {
		return nil, fmt.Errorf("read %s: %w", key, store.ErrDamaged)
	}
	return []byte(body), nil
}

func (b *bucket) GetManifest(ctx context.Context, id release.ID, want release.Content) ([]byte, error) {
	return b.whole(ctx, "m/"+string(id), want)
}

func (b *bucket) GetDelta(ctx context.Context, id, parent release.ID, want release.Content) ([]byte, error) {
	return b.whole(ctx, release.Source{Release: id, Parent: parent}.Key(), want)
}

func (b *bucket) OpenRange(ctx context.Context, src release.Source, offset, length int64) (io.ReadCloser, error) {
	body, err := b.object(ctx, src.Key())
	if err != nil {
		return nil, err
	}
	if offset+length > int64(len(body)) {
		return nil, fmt.Errorf("read %s: %w", src.Key(), store.ErrDamaged)
	}
	return io.NopCloser(bytes.NewReader([]byte(body[offset : offset+length]))), nil
}

// tree is a release before it is packed: contents by path. A path that ends in a slash is an empty directory, one in .sh is
// executable, and contents that begin with an arrow are a link.
type tree map[string]string

// with is the tree with other contents in some places; "" takes the path away.
func (tr tree) with(changes tree) tree {
	out := maps.Clone(tr)
	for p, body := range changes {
		if out[p] = body; body == "" {
			delete(out, p)
		}
	}
	return out
}

func (tr tree) entries() []release.Entry {
	var out []release.Entry
	dirs := map[string]bool{}
	for p, body := range tr {
		target, link := strings.CutPrefix(body, "-> ")
		clean, dir := strings.CutSuffix(p, "/")
		for up := path.Dir(clean); up != "."; up = path.Dir(up) {
			dirs[up] = true
		}
		switch {
		case dir:
			dirs[clean] = true
		case link:
			out = append(out, release.Entry{Path: p, Kind: release.Symlink, Target: target})
		default:
			out = append(out, release.Entry{
				Path: p, Kind: release.File, Exec: strings.HasSuffix(p, ".sh"), Size: int64(len(body)), Sum: sha256.Sum256([]byte(body)),
			})
		}
	}
	for d := range dirs {
		out = append(out, release.Entry{Path: d, Kind: release.Dir})
	}
	return out
}

// packed is a release as push would have written it.
type packed struct {
	id       release.ID
	parent   *packed
	manifest *release.Manifest
	object   []byte // the manifest's
	delta    []byte
}

// packing is how a release is packed: its parent (nil: none), and the size of packs (0: the usual one, and new contents go
// into the delta where there is a parent).
type packing struct {
	parent *packed
	size   int64
	put    func(key string, body []byte)
	stored func([]byte) []byte // what is stored of a frame instead; nil: what should be
}

func (k packing) pack(t testing.TB, id release.ID, tr tree) *packed {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	var old *release.Manifest
	var kept []*release.Manifest
	if k.parent != nil {
		old = k.parent.manifest
		kept = append(kept, old)
	}
	draft, err := release.NewDraft(tr.entries(), old, kept, time.Date(2026, 11, 20, 20, 0, 0, 0, time.UTC).Unix())
	check(err)
	packer := draft.Packer(k.size)
	for i, f := range draft.Frames {
		var plain []byte
		for _, part := range f.Parts {
			plain = append(plain, tr[part.Path][part.From:part.From+part.Length]...)
		}
		stored, err := f.Build(nil, plain)
		check(err)
		if k.stored != nil {
			stored = k.stored(stored)
		}
		full, err := packer.Put(i, stored)
		check(err)
		for _, p := range full {
			k.put("p/"+p.Sum.String(), p.Data)
		}
	}
	if old == nil || k.size > 0 || !packer.Inline(id, k.parent.id) {
		if p := packer.Flush(); p != nil {
			k.put("p/"+p.Sum.String(), p.Data)
		}
	}
	out := &packed{id: id, parent: k.parent}
	out.manifest, err = draft.Manifest()
	check(err)
	out.object, err = out.manifest.Encode()
	check(err)
	k.put("m/"+string(id), out.object)
	if old != nil {
		out.delta, err = draft.Delta(out.manifest, old)
		check(err)
		k.put("d/"+string(id)+"/"+string(k.parent.id), out.delta)
	}
	return out
}

func sum256(body []byte) string {
	s := sha256.Sum256(body)
	return hex.EncodeToString(s[:])
}

// lines are those of the pointer that tell of the packed layout.
func (p *packed) lines() []string {
	out := []string{`scope "bucket/promo"`, fmt.Sprintf("manifest %q", fmt.Sprintf("%s %d", sum256(p.object), len(p.object)))}
	if p.delta != nil {
		out = append(out, fmt.Sprintf("delta %q", fmt.Sprintf("%s %s %d", p.parent.id, sum256(p.delta), len(p.delta))))
	}
	return out
}

// put is the bucket's side of packing.
func (b *bucket) put(key string, body []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bodies[key] = string(body)
}

// requests are the packed objects that were asked for since the last call, with how often.
func (b *bucket) requests() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.fetched
	b.fetched = map[string]int{}
	return out
}

// packed pushes a release of the packed layout.
func (r *rig) packed(id release.ID, parent *packed, tr tree) *packed {
	r.t.Helper()
	p := packing{parent: parent, put: r.bucket.put}.pack(r.t, id, tr)
	r.point(id, p.manifest.Files(), p.lines()...)
	return p
}
