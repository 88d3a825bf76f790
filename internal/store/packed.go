package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"s3pulldeploy/internal/release"
)

// maxDelta is the largest delta in bytes: its frames, its difference, and what holds them together.
const maxDelta = release.MaxInline + release.MaxManifest + 1024

// refetches is how often an object whose bytes are not the signed ones is fetched once more: the damage may have
// happened on the way.
const refetches = 1

// renewals bounds how often a pack that is too old to rely on is written anew.
const renewals = 3

func manifestKey(id release.ID) string { return "m/" + string(id) }

func deltaSource(id, parent release.ID) release.Source {
	return release.Source{Release: id, Parent: parent}
}

// describe names what a manifest's frames are in.
func describe(src release.Source) string {
	if src.Release != "" {
		return fmt.Sprintf("delta %q of %q", src.Release, src.Parent)
	}
	return fmt.Sprintf("pack %q", src.Pack)
}

// PutManifest writes the manifest of a release. The same bytes already there are a success, others ErrExists, which
// a tombstone is too.
func (s *Store) PutManifest(ctx context.Context, id release.ID, object []byte) error {
	if err := s.putBytes(ctx, manifestKey(id), object); err != nil {
		return fmt.Errorf("write manifest %q: %w", id, err)
	}
	return nil
}

// PutDelta writes the delta of a release to its parent, as PutManifest does a manifest.
func (s *Store) PutDelta(ctx context.Context, id, parent release.ID, object []byte) error {
	src := deltaSource(id, parent)
	if err := s.putBytes(ctx, src.Key(), object); err != nil {
		return fmt.Errorf("write %s: %w", describe(src), err)
	}
	return nil
}

func (s *Store) putBytes(ctx context.Context, key string, object []byte) error {
	return s.putLasting(ctx, key, bytes.NewReader(object), int64(len(object)), sha256.Sum256(object))
}

// PutPack writes a pack: size bytes of body, whose SHA-256 is sum. Body is read from its start, more than once
// where a request is repeated, and not closed. S3 refuses other bytes than those of sum. A cut connection costs
// what was sent of this one object: who has a slow uplink makes packs small.
//
// The same bytes already there are a success, so an interrupted push can be run again; if they are not
// [Store.Reliable] they are written once more, so that they are not deleted as left over while the push still runs.
// Other bytes are overwritten: they are not what their name says.
func (s *Store) PutPack(ctx context.Context, sum release.Sum, body io.ReadSeeker, size int64) error {
	src := release.Source{Pack: sum}
	err := s.putLasting(ctx, src.Key(), body, size, sum)
	if errors.Is(err, ErrExists) {
		return s.ReplacePack(ctx, sum, body, size)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", describe(src), err)
	}
	return nil
}

// ReplacePack is PutPack over whatever is there, also where S3 says that it is the same: for a pack that cannot be read.
func (s *Store) ReplacePack(ctx context.Context, sum release.Sum, body io.ReadSeeker, size int64) error {
	src := release.Source{Pack: sum}
	if err := s.put(ctx, s.outgoing(src.Key(), body, size, sum), &s3.PutObjectInput{}); err != nil {
		return fmt.Errorf("write %s: %w", describe(src), err)
	}
	return nil
}

// outgoing makes one of bytes whose sum is known; key is below the site.
func (s *Store) outgoing(key string, body io.ReadSeeker, size int64, sum release.Sum) *outgoing {
	return &outgoing{
		key: s.base + key, body: source{ReadSeeker: body, size: size},
		sum: base64.StdEncoding.EncodeToString(sum[:]),
	}
}

// putLasting writes an immutable object such that it is [Store.Reliable] afterwards.
func (s *Store) putLasting(ctx context.Context, key string, body io.ReadSeeker, size int64, sum release.Sum) error {
	u := s.outgoing(key, body, size, sum)
	for tries := 1; ; tries++ {
		old, err := s.create(ctx, u)
		if err != nil || old == nil || s.Reliable(old.age) {
			return err
		}
		meterOf(ctx).add(-size) // it is sent after all
		err = s.put(ctx, u, &s3.PutObjectInput{IfMatch: quoted(old.etag)})
		// It went away, or another push was first: look again.
		gone := errors.Is(err, ErrChanged) || errors.Is(err, errBusy) || errors.Is(err, ErrNotFound)
		if !gone || u.body.err != nil || tries == renewals {
			return err
		}
	}
}

// PackIndex reads what a pack says of itself, as it was listed: two short ranges. What is no pack is a *release.Error.
func (s *Store) PackIndex(ctx context.Context, o Stored) ([]release.IndexFrame, error) {
	src, err := hex.DecodeString(strings.TrimPrefix(o.Key, "p/"))
	if err != nil || len(src) != len(release.Sum{}) {
		return nil, fmt.Errorf("read index of %q: not a pack", o.Key)
	}
	e := &ends{store: s, ctx: ctx, src: release.Source{Pack: release.Sum(src)}, size: o.Size}
	index, err := release.ReadPackIndex(e, o.Size)
	if err != nil {
		return nil, fmt.Errorf("read index of %s: %w", describe(e.src), err)
	}
	return index, nil
}

// ends reads a pack's ends. The tail is fetched once: an index is mostly less than a sixteenth of its pack.
type ends struct {
	store *Store
	ctx   context.Context
	src   release.Source
	size  int64
	tail  []byte
}

func (e *ends) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > e.size {
		return 0, io.ErrUnexpectedEOF
	}
	if at < e.size/2 {
		return e.fetch(p, at)
	}
	if from := e.size - int64(len(e.tail)); e.tail == nil || at < from {
		e.tail = make([]byte, e.size-min(at, e.size-e.size/16-1))
		if _, err := e.fetch(e.tail, e.size-int64(len(e.tail))); err != nil {
			return 0, err
		}
	}
	return copy(p, e.tail[at-e.size+int64(len(e.tail)):]), nil
}

func (e *ends) fetch(p []byte, at int64) (int, error) {
	in, err := e.store.OpenRange(e.ctx, e.src, at, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer in.Close()
	return io.ReadFull(in, p)
}

// HasPack says whether a pack is there, as a listing would have it; ErrNotFound if it is not. Who publishes
// contents that no manifest names yet looks again right before the pointer.
func (s *Store) HasPack(ctx context.Context, sum release.Sum) (Stored, error) {
	src := release.Source{Pack: sum}
	o, _, err := s.head(ctx, src.Key())
	if err != nil {
		return Stored{}, fmt.Errorf("find %s: %w", describe(src), err)
	}
	return o, nil
}

// head returns an object as it stands, and S3's clock.
func (s *Store) head(ctx context.Context, key string) (Stored, time.Time, error) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: aws.String(s.base + key)})
	if err != nil {
		return Stored{}, time.Time{}, fmt.Errorf("head object: %w", maybeMissing(explain(ctx, err, ErrNotFound)))
	}
	o := Stored{
		Key: key, Size: aws.ToInt64(out.ContentLength),
		ETag: unquoted(out.ETag), Modified: aws.ToTime(out.LastModified),
	}
	return o, answered(out.ResultMetadata), nil
}

// GetManifest returns the manifest of a release: exactly the bytes that want identifies, else ErrDamaged, and
// ErrNotFound where there is none. No more than one byte above the wanted length is read.
func (s *Store) GetManifest(ctx context.Context, id release.ID, want release.Content) ([]byte, error) {
	return s.get(ctx, fmt.Sprintf("manifest %q", id), manifestKey(id), want, release.MaxManifest)
}

// GetDelta returns the delta of a release to its parent, as GetManifest does a manifest.
func (s *Store) GetDelta(ctx context.Context, id, parent release.ID, want release.Content) ([]byte, error) {
	src := deltaSource(id, parent)
	return s.get(ctx, describe(src), src.Key(), want, maxDelta)
}

// get reads an object that must be the wanted one.
func (s *Store) get(ctx context.Context, what, key string, want release.Content, limit int64) ([]byte, error) {
	if want.Length > limit {
		return nil, fmt.Errorf("read %s: %w: %d bytes, limit %d", what, ErrTooLarge, want.Length, limit)
	}
	for tries := 0; ; tries++ {
		object, err := s.fetch(&reader{store: s, ctx: ctx, what: what, key: s.base + key, size: want.Length}, want.SHA256)
		if err == nil || !errors.Is(err, ErrDamaged) || tries == refetches {
			return object, err
		}
		s.log.Warn("fetching once more", "object", s.base+key, "error", err)
	}
}

// fetch reads to the end and compares the SHA-256, unless that is "".
func (s *Store) fetch(r *reader, want string) ([]byte, error) {
	if err := r.start(); err != nil {
		return nil, err
	}
	defer r.Close()
	object := make([]byte, r.size)
	if _, err := io.ReadFull(r, object); err != nil {
		return nil, err
	}
	// The reader has more to say after the last byte: that there are others, or that the sum is wrong.
	if _, err := io.ReadFull(r, make([]byte, 1)); err != io.EOF {
		return nil, err
	}
	if got := sha256.Sum256(object); want != "" && hex.EncodeToString(got[:]) != want {
		return nil, r.fail(fmt.Errorf("%w: SHA-256 %x instead of %s", ErrDamaged, got, want))
	}
	return object, nil
}

// OpenRange returns length bytes from offset on of a pack or a delta. The reader lives as long as ctx and must be
// closed; after a cut it goes on where it was. It ends after exactly length bytes: an object that has fewer is
// ErrDamaged, one that is gone ErrNotFound. What the bytes are is not verified here, because a range has no sum:
// the sum of every file in it is in the manifest. A connection whose range was read to its end serves the next.
func (s *Store) OpenRange(ctx context.Context, src release.Source, offset, length int64) (io.ReadCloser, error) {
	r := &reader{
		store: s, ctx: ctx, what: fmt.Sprintf("%s from byte %d", describe(src), offset),
		key: s.base + src.Key(), from: offset, size: length, part: true,
	}
	if offset < 0 || length <= 0 {
		return nil, r.fail(fmt.Errorf("%w: a range of %d bytes", ErrDamaged, length))
	}
	if err := r.start(); err != nil {
		return nil, err
	}
	return r, nil
}
