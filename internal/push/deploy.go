package push

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// deploy makes a release of a directory and moves the fleet to it.
func (s *session) deploy(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.packed() {
		return s.deployPacked(ctx, cancel)
	}
	return s.deployPlain(ctx, cancel)
}

func (s *session) deployPlain(ctx context.Context, cancel func()) error {
	began := time.Now()
	var tree *Tree
	site, v, err := s.admitWhile(ctx, cancel, func() (err error) {
		tree, err = Scan(s.arg, s.cfg)
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
	if !s.force {
		same, err := site.unchanged(ctx, tree, v)
		if err != nil {
			return err
		}
		if same {
			return s.endUnchanged(v, len(tree.Files), tree.Ignored)
		}
	}
	if s.dryRun {
		return s.rehearsePlain(ctx, site, v, tree)
	}
	id, err := site.newID(ctx, v)
	if err != nil {
		return err
	}
	r := &Result{Release: id, Files: len(tree.Files), UploadedBytes: tree.Bytes(), Members: v.Live, began: began}
	if err := s.upload(ctx, site, tree, id); err != nil {
		return err
	}
	return s.rollOut(ctx, site, v, release.Pointer{Release: id, Files: len(tree.Files)}, r)
}

// rehearsePlain ends a dry run of the plain layout, which uploads every file.
func (s *session) rehearsePlain(ctx context.Context, site *site, v view, tree *Tree) error {
	parent, err := s.parent(ctx, site, openCache(s.cfg.Scope(), s.arg), v.Pointer)
	if err != nil {
		return err
	}
	former, err := site.former(ctx, v.Pointer, parent)
	if err != nil {
		return err
	}
	paths := make([]string, len(tree.Files))
	for i, f := range tree.Files {
		paths[i] = f.Path
	}
	r := &Result{Files: len(tree.Files), UploadedBytes: tree.Bytes(), Members: v.Live, Plan: newPlan(paths, former, paths, tree.Ignored)}
	return s.endDry(r)
}

// begin opens the site, looks at it and says the first line.
func (s *session) begin(ctx context.Context) (*site, view, error) {
	site, err := s.open(ctx)
	if err != nil {
		return nil, view{}, err
	}
	v := site.look(ctx)
	s.say("%s", site.line(v))
	if mixed := v.versions(); mixed != "" {
		s.warn("the live instances run different versions: %s", mixed)
	}
	return site, v, nil
}

// admitWhile looks at the site while the tree is read. What is wrong with the tree is said and nothing else: it is what the user can
// mend.
func (s *session) admitWhile(ctx context.Context, cancel func(), read func() error) (site *site, v view, err error) {
	var admission errgroup.Group
	admission.Go(func() (err error) {
		site, v, err = s.admit(ctx)
		return err
	})
	if err := read(); err != nil {
		cancel()
		_ = admission.Wait()
		return nil, view{}, err
	}
	err = admission.Wait()
	return site, v, err
}

// admit looks at the site before anything is uploaded, says what there is to be warned of, and refuses where a deploy could not
// go out.
func (s *session) admit(ctx context.Context) (*site, view, error) {
	site, v, err := s.begin(ctx)
	if err != nil {
		return nil, view{}, err
	}
	s.say("scanning %s", s.arg)
	v.doubt(s.console)
	if err := v.usable(s.force); err != nil {
		return nil, view{}, err
	}
	return site, v, s.frozen(ctx, site, &v)
}

// rollOut publishes the pointer and waits for the fleet, if anybody is there and it is asked for.
func (s *session) rollOut(ctx context.Context, site *site, v view, p release.Pointer, r *Result) error {
	p, err := s.next(v, p, time.Now())
	if err != nil {
		return err
	}
	if err := s.publish(ctx, site, v, p); err != nil {
		return err
	}
	r.Sequence, r.Outcome = p.Sequence, Published
	if s.wait && v.Live > 0 {
		w := &watcher{ledger: site.ledger, pointer: site.pointerSequence, board: s.board(), sequence: p.Sequence, release: p.Release, began: r.began}
		w.follow(ctx, s.timeout, r)
	}
	err = s.end(r)
	if err == nil && p.Kind == "" {
		s.tidy(ctx, site)
	}
	return err
}

// pointerSequence is the sequence of the pointer as it is now; 0 when it cannot be told.
func (s *site) pointerSequence(ctx context.Context) int64 {
	read, err := s.store.Pointer(ctx, "")
	if err != nil {
		return 0
	}
	p, _ := release.ParsePointer(read.Text)
	return p.Sequence
}

// unchanged says whether the pointer names this very tree, and the fleet is on it or has not begun. The bucket's
// listing tells: paths, sizes, and ETags as far as they are MD5 sums. An ETag that is none is a change.
func (s *site) unchanged(ctx context.Context, tree *Tree, v view) (bool, error) {
	p := v.Pointer
	if v.Untrusted != nil || p.Release == "" || !p.Plain() || p.Files != len(tree.Files) || v.HasHead && v.Head.CommittedRelease != p.Release {
		return false, nil
	}
	listing, err := s.store.List(ctx, p.Release)
	if err != nil {
		return false, err
	}
	if difference(tree, listing) != "" {
		return false, nil
	}
	etags := map[string]string{}
	for _, o := range listing {
		etags[o.Path] = o.ETag
	}
	for _, f := range tree.Files {
		sum, err := tree.md5(ctx, f)
		if err != nil || sum != etags[f.Path] {
			return false, err
		}
	}
	return true, nil
}

// md5 is the MD5 of a file in hex: what S3 shows as the ETag of an object that came in one piece.
func (t *Tree) md5(ctx context.Context, f File) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	in, err := t.Open(f)
	if err != nil {
		return "", err
	}
	defer in.Close()
	sum := md5.New()
	if _, err := io.Copy(sum, in); err != nil {
		return "", fmt.Errorf("read %q: %w", f.Path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// difference names the first path that the tree and a listing do not share in the same size, or is "".
func difference(tree *Tree, listing release.Listing) string {
	listing = slices.Clone(listing)
	slices.SortFunc(listing, func(a, b release.Object) int { return strings.Compare(a.Path, b.Path) })
	for i, f := range tree.Files {
		if i == len(listing) || f.Path < listing[i].Path {
			return f.Path
		}
		if o := listing[i]; o.Path != f.Path || o.Size != f.Size {
			return o.Path
		}
	}
	if len(listing) > len(tree.Files) {
		return listing[len(tree.Files)].Path
	}
	return ""
}

// newID names the release by the time; while a release has that name already it waits for the next second.
func (s *site) newID(ctx context.Context, v view) (release.ID, error) {
	known, err := s.store.Releases(ctx)
	if err != nil {
		return "", err
	}
	for {
		now := time.Now()
		id := release.NewID(now)
		if id != v.Pointer.Release && !slices.Contains(known, id) {
			return id, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(now.Truncate(time.Second).Add(time.Second).Sub(now)):
		}
	}
}

// parallel is how many files are under way at once.
const parallel = 16

// upload writes the contents, then makes sure that the bucket lists exactly them: a second push with the same id, in
// the same second, would show here.
func (s *session) upload(ctx context.Context, site *site, tree *Tree, id release.ID) error {
	s.say("uploading %s of %s, %s", count(len(tree.Files), "file"), id, amount(tree.Bytes()))
	began := time.Now()
	stop := s.progress(tree.Bytes(), site.store.Counts)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, f := range tree.Files {
		g.Go(func() error { return site.uploadFile(gctx, tree, id, f) })
	}
	err := g.Wait()
	stop()
	if err != nil {
		err = fmt.Errorf("upload release %q: %w", id, err)
		if errors.Is(err, store.ErrExists) { // two pushes in one second have the same id
			err = kind{errConflict, advise(err, "another push used the same id: push again")}
		}
		return err
	}
	listing, err := site.store.List(ctx, id)
	if err != nil {
		return err
	}
	if path := difference(tree, listing); path != "" {
		return kind{errConflict, fmt.Errorf("check release %q: %q is not in the bucket as it was uploaded: another push used the same id", id, path)}
	}
	s.say("uploaded in %s", span(time.Since(began)))
	return nil
}

func (s *site) uploadFile(ctx context.Context, tree *Tree, id release.ID, f File) error {
	if err := ctx.Err(); err != nil {
		return err // the first error is known already
	}
	in, err := tree.Open(f)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := failpoint.Hit("PU1"); err != nil {
		return err
	}
	err = s.store.Upload(ctx, id, f.Path, in, f.Size)
	if err == nil || errors.Is(err, store.ErrChanged) {
		if changed := f.unchanged(in); changed != nil {
			return changed
		}
	}
	return err
}
