package sim

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// tree is a release's contents by path.
type tree map[string]string

// treeOf is what is pushed as id: some files are the release's own, some change seldom, one never.
func treeOf(id release.ID, n int) tree {
	return tree{
		"index.php":     "<?php // " + string(id),
		"lib/a.php":     fmt.Sprintf("<?php // a, version %d", n/3),
		"lib/b/c.php":   "<?php // never changes",
		"img/logo.png":  strings.Repeat(fmt.Sprintf("%03d", n/2), 2000),
		"css/empty.css": "",
		"bin/run.sh":    "#!/bin/sh",
	}
}

// bucket is a site in memory, in one of the two layouts. It is looked at under the realm's lock.
type bucket struct {
	r       *realm
	plain   map[release.ID]release.Listing
	bodies  map[release.ID]tree
	objects map[string][]byte     // of the packed layout
	lines   map[release.ID]string // that packed pointers add
	last    *release.Manifest     // of the release pushed last
	lastID  release.ID
	past    [][]byte // pointers
}

func md5hex(b string) string {
	s := md5.Sum([]byte(b))
	return hex.EncodeToString(s[:])
}

// upload stores the contents of a release; those of a broken one are not what they should be.
func (b *bucket) upload(id release.ID, broken bool) {
	tr := treeOf(id, len(b.bodies))
	b.bodies[id] = tr
	if b.r.packed {
		last, lastID := b.last, b.lastID
		b.pack(id, tr)
		if broken { // and later ones do not build on it
			b.last, b.lastID = last, lastID
			maps.DeleteFunc(b.objects, func(key string, _ []byte) bool {
				return key == "m/"+string(id) || strings.HasPrefix(key, "d/"+string(id)+"/")
			})
		}
		return
	}
	var l release.Listing
	for _, p := range slices.Sorted(maps.Keys(tr)) {
		l = append(l, release.Object{Path: p, Size: int64(len(tr[p])), ETag: md5hex(tr[p]), Modified: b.r.wall().Add(-time.Hour)})
	}
	if broken {
		l[0].ETag = md5hex("something else")
	}
	b.plain[id] = l
}

// mode is that of a released file: the plain layout knows of no executable ones.
func (b *bucket) mode(p string) fs.FileMode {
	if b.r.packed && strings.HasSuffix(p, ".sh") {
		return 0o755
	}
	return 0o644
}

// digest is what a note says of a release.
func (b *bucket) digest(id release.ID) string {
	if !b.r.packed {
		return b.plain[id].Digest()
	}
	sum := sha256.Sum256(b.objects["m/"+string(id)])
	return hex.EncodeToString(sum[:])
}

// sign completes a pointer's text.
func (b *bucket) sign(text []byte, id release.ID) []byte {
	lines := strings.SplitN(string(text), "\n", 4)
	lines[2] = fmt.Sprint(len(b.bodies[id]))
	out := strings.Join(lines, "\n")
	if more := b.lines[id]; more != "" {
		out += "\n" + more
	}
	return []byte(out)
}

// pack makes a release of the packed layout, with a delta to the one pushed before.
func (b *bucket) pack(id release.ID, tr tree) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var entries []release.Entry
	dirs := map[string]bool{}
	for p, body := range tr {
		for up := path.Dir(p); up != "."; up = path.Dir(up) {
			dirs[up] = true
		}
		entries = append(entries, release.Entry{Path: p, Kind: release.File, Exec: b.mode(p)&0o111 != 0, Size: int64(len(body)), Sum: sha256.Sum256([]byte(body))})
	}
	for d := range dirs {
		entries = append(entries, release.Entry{Path: d, Kind: release.Dir})
	}
	slices.SortFunc(entries, func(a, b release.Entry) int { return strings.Compare(a.Path, b.Path) })
	var kept []*release.Manifest
	if b.last != nil {
		kept = append(kept, b.last)
	}
	draft, err := release.NewDraft(entries, b.last, kept, b.r.wall().Add(-time.Hour).Unix())
	must(err)
	packer := draft.Packer(0)
	put := func(p *release.Pack) { b.objects["p/"+p.Sum.String()] = p.Data }
	for i, f := range draft.Frames {
		var plain []byte
		for _, part := range f.Parts {
			plain = append(plain, tr[part.Path][part.From:part.From+part.Length]...)
		}
		stored, err := f.Build(nil, plain)
		must(err)
		full, err := packer.Put(i, stored)
		must(err)
		for _, p := range full {
			put(p)
		}
	}
	if b.last == nil || !packer.Inline(id, b.lastID) {
		if p := packer.Flush(); p != nil {
			put(p)
		}
	}
	m, err := draft.Manifest()
	must(err)
	object, err := m.Encode()
	must(err)
	b.objects["m/"+string(id)] = object
	text := fmt.Sprintf("scope %q\nmanifest %q", scope, content(object))
	if b.last != nil {
		delta, err := draft.Delta(m, b.last)
		must(err)
		b.objects[release.Source{Release: id, Parent: b.lastID}.Key()] = delta
		text += fmt.Sprintf("\ndelta %q", string(b.lastID)+" "+content(delta))
	}
	b.last, b.lastID = m, id
	b.lines[id] = text
}

// content is how a pointer names an object.
func content(object []byte) string {
	sum := sha256.Sum256(object)
	return fmt.Sprintf("%x %d", sum[:], len(object))
}

var errCut = fmt.Errorf("no route: %w", store.ErrUnavailable)

// ask is a request to the bucket on its way: it takes time, and may be lost.
func (l *life) ask(ctx context.Context, what string, slot int) (fate, error) {
	f := l.fate(what)
	slow := 2 * time.Second
	if f.chance(0.02) && !l.calm() {
		slow = time.Minute
	}
	if err := l.wait(ctx, slot, f.between(5*time.Millisecond, slow)); err != nil {
		return f, err
	}
	err, dead := l.handle(what, f)
	if dead {
		return f, l.halt()
	}
	return f, err
}

// handle is the request at the bucket's end; dead: it was the process' last.
func (l *life) handle(what string, f fate) (err error, dead bool) {
	r, h := l.h.r, l.h
	r.lock()
	defer r.mu.Unlock()
	switch lost := !r.calm && f.chance(0.02); {
	case r.now < h.s3cut, lost:
		r.happened(h.id, what, "lost")
		return errCut, false
	case !r.calm && f.chance(0.004):
		h.crash("crashed in " + what)
		return nil, true
	default:
		r.happened(h.id, what, "answered")
	}
	return nil, false
}

// Pointer implements agent.Bucket. Once in a while an older one comes back.
func (l *life) Pointer(ctx context.Context, etag string) (read store.Read, err error) {
	f, err := l.ask(ctx, "pointer", slotPointer)
	if err != nil {
		return read, err
	}
	r := l.h.r
	r.lock()
	defer r.mu.Unlock()
	text := r.pointer
	if old := r.bucket.past; !r.calm && len(old) > 1 && f.chance(0.02) {
		text = old[f.IntN(len(old)-1)]
	}
	switch tag := md5hex(string(text)); {
	case text == nil:
		return read, store.ErrNotFound
	case tag == etag:
		return read, store.ErrNotModified
	default:
		return store.Read{Text: slices.Clone(text), ETag: tag, Date: r.wall()}, nil
	}
}

// List implements agent.Bucket.
func (l *life) List(ctx context.Context, id release.ID) (release.Listing, error) {
	if _, err := l.ask(ctx, "list "+string(id), slotWorker); err != nil {
		return nil, err
	}
	l.h.r.lock()
	defer l.h.r.mu.Unlock()
	return slices.Clone(l.h.r.bucket.plain[id]), nil
}

// Open implements agent.Bucket.
func (l *life) Open(ctx context.Context, id release.ID, o release.Object) (io.ReadCloser, error) {
	var body string
	f, err := l.ask(ctx, "get "+string(id)+"/"+o.Path, contentSlot(o.Path))
	if err != nil {
		return nil, err
	}
	l.h.r.locked(func() { body = l.h.r.bucket.bodies[id][o.Path] })
	return l.body(ctx, f, []byte(body), o.Path, o.ETag), nil
}

// contentSlot spreads what is fetched at the same time.
func contentSlot(name string) int {
	n := slotContents
	for _, c := range []byte(name) {
		n = slotContents + (n*31+int(c))%(slotsPerHost-slotContents)
	}
	return n
}

// object reads a whole object; part tells requests for the same one apart.
func (l *life) object(ctx context.Context, key, part string) (fate, []byte, error) {
	f, err := l.ask(ctx, "get "+key+part, contentSlot(key+part))
	if err != nil {
		return f, nil, err
	}
	l.h.r.lock()
	defer l.h.r.mu.Unlock()
	if body, ok := l.h.r.bucket.objects[key]; ok {
		return f, body, nil
	}
	return f, nil, fmt.Errorf("read %s: %w", key, store.ErrNotFound)
}

// GetManifest implements agent.Packed.
func (l *life) GetManifest(ctx context.Context, id release.ID, _ release.Content) ([]byte, error) {
	_, body, err := l.object(ctx, "m/"+string(id), "")
	return body, err
}

// GetDelta implements agent.Packed.
func (l *life) GetDelta(ctx context.Context, id, parent release.ID, _ release.Content) ([]byte, error) {
	_, body, err := l.object(ctx, release.Source{Release: id, Parent: parent}.Key(), "")
	return body, err
}

// OpenRange implements agent.Packed.
func (l *life) OpenRange(ctx context.Context, src release.Source, offset, length int64) (io.ReadCloser, error) {
	f, body, err := l.object(ctx, src.Key(), fmt.Sprint(" from ", offset))
	if err != nil {
		return nil, err
	}
	return l.body(ctx, f, body[offset:offset+length], fmt.Sprint(src.Key(), " from ", offset), ""), nil
}

// reader is a body that may break off or be damaged on its way; between its pieces the process may die.
type reader struct {
	io.Reader
	l    *life
	ctx  context.Context
	f    fate
	name string
	sum  hash.Hash
	want string // MD5; empty: whoever asked compares
}

func (l *life) body(ctx context.Context, f fate, body []byte, name, want string) io.ReadCloser {
	var from io.Reader = bytes.NewReader(body)
	if !l.calm() && len(body) > 0 {
		switch {
		case f.chance(0.02):
			from = io.MultiReader(bytes.NewReader(body[:f.IntN(len(body))]), broken{})
		case f.chance(0.01):
			body = slices.Clone(body)
			body[f.IntN(len(body))] ^= 1
			from = bytes.NewReader(body)
		}
	}
	return io.NopCloser(&reader{Reader: from, l: l, ctx: ctx, f: f, name: name, sum: md5.New(), want: want})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errCut }

func (b *reader) Read(p []byte) (int, error) {
	if err := b.l.wait(b.ctx, contentSlot(b.name), b.f.between(time.Microsecond, 20*time.Millisecond)); err != nil {
		return 0, err
	}
	if len(p) > 1500 {
		p = p[:1500]
	}
	n, err := b.Reader.Read(p)
	b.sum.Write(p[:n])
	if got := hex.EncodeToString(b.sum.Sum(nil)); errors.Is(err, io.EOF) && b.want != "" && got != b.want { // as package store does
		err = fmt.Errorf("read %s: %w", b.name, store.ErrDamaged)
	}
	if !b.l.calm() && b.f.chance(0.003) {
		b.l.h.r.locked(func() { b.l.h.crash("crashed reading " + b.name) })
		return 0, b.l.halt()
	}
	return n, err
}
