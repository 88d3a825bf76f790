package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"s3pulldeploy/internal/release"
)

// tombstoneMagic is a tombstone's first line. A manifest begins with the magic of zstd.
const tombstoneMagic = "s3pdtomb1"

// DeleteTime is how long a deletion may take, from its last look at the object on.
const DeleteTime = 5 * time.Second

// deleteTime is DeleteTime, but in tests, whose server may stall.
var deleteTime = DeleteTime

// Found is what stands where a release's manifest belongs.
type Found struct {
	Object  []byte          // the manifest; nil if the release was dropped
	Content release.Content // of the manifest, as a pointer names it
	Dropped bool            // there is a tombstone
	Keys    []string        // of the packs and deltas that a dropped release was made of
	Stored  Stored
}

// FindManifest returns what stands where the manifest of a release belongs, for those who have no pointer that
// names its bytes: their origin is not verified. It fails with ErrNotFound where there is nothing, and with
// ErrTooLarge above release.MaxManifest.
func (s *Store) FindManifest(ctx context.Context, id release.ID) (Found, error) {
	found, _, err := s.find(ctx, id)
	return found, err
}

func (s *Store) find(ctx context.Context, id release.ID) (Found, time.Time, error) {
	what, key := fmt.Sprintf("manifest %q", id), manifestKey(id)
	var is learned
	r := &reader{store: s, ctx: ctx, what: what, key: s.base + key, size: release.MaxManifest, learn: &is}
	object, err := s.fetch(r, "")
	if err != nil {
		return Found{}, is.date, err
	}
	is.Key, is.Release = key, id
	f := Found{Stored: is.Stored}
	if !bytes.HasPrefix(object, []byte(tombstoneMagic)) {
		sum := sha256.Sum256(object)
		f.Object, f.Content = object, release.Content{SHA256: hex.EncodeToString(sum[:]), Length: is.Size}
		return f, is.date, nil
	}
	f.Dropped = true
	if f.Keys, err = parseTombstone(object); err != nil {
		return Found{}, is.date, fmt.Errorf("read %s: tombstone: %w", what, err)
	}
	return f, is.date, nil
}

// tombstone is the text that stands for a dropped release: a line that says so, and a line for each key of what
// the release was made of.
func tombstone(sources []release.Source) []byte {
	keys := make([]string, 0, len(sources)+1)
	for _, src := range sources {
		keys = append(keys, src.Key())
	}
	slices.Sort(keys)
	keys = append([]string{tombstoneMagic}, slices.Compact(keys)...)
	return []byte(strings.Join(keys, "\n") + "\n")
}

func parseTombstone(text []byte) ([]string, error) {
	lines, whole := strings.CutSuffix(string(text), "\n")
	keys := strings.Split(lines, "\n")
	if !whole || keys[0] != tombstoneMagic {
		return nil, fmt.Errorf("%w: not whole", ErrDamaged)
	}
	for _, key := range keys[1:] {
		if _, ok := parseKey(key); !ok || strings.HasPrefix(key, "m/") {
			return nil, fmt.Errorf("%w: %.80q is no pack or delta", ErrDamaged, key)
		}
	}
	return keys[1:], nil
}

// WriteTombstone drops a release: its manifest, as it was listed or found, is replaced by a list of the sources
// that it was made of. From then on nobody can deploy it, and after [Grace] what only it used may be deleted. It
// fails with ErrChanged when the manifest is another one by now; the same tombstone already there is a success.
func (s *Store) WriteTombstone(ctx context.Context, manifest Stored, sources []release.Source) error {
	if err := s.bury(ctx, manifest, tombstone(sources)); err != nil {
		return fmt.Errorf("drop release %q: %w", manifest.Release, err)
	}
	return nil
}

func (s *Store) bury(ctx context.Context, manifest Stored, text []byte) error {
	if manifest.Release == "" || manifest.Key != manifestKey(manifest.Release) || manifest.ETag == "" {
		return fmt.Errorf("%q is no manifest that was listed", manifest.Key)
	}
	return s.replace(ctx, manifest, text)
}

// replace writes an object in place of the one that was found. The same bytes already there are a success.
func (s *Store) replace(ctx context.Context, o Stored, text []byte) error {
	u := s.outgoing(o.Key, bytes.NewReader(text), int64(len(text)), sha256.Sum256(text))
	err := s.put(ctx, u, &s3.PutObjectInput{IfMatch: quoted(o.ETag)})
	if err == nil || !unclear(err) || ctx.Err() != nil {
		return err
	}
	// The answer may have been lost, and a retry have met its own success.
	if _, same := s.compare(ctx, u); same == nil {
		return nil
	}
	return err
}

// DropPlain drops a release of the plain layout: a tombstone is put where a manifest would be. It fails with ErrExists
// where there is one; a tombstone of such a release already there is a success.
func (s *Store) DropPlain(ctx context.Context, id release.ID) error {
	text := tombstone(nil)
	if _, err := s.create(ctx, s.outgoing(manifestKey(id), bytes.NewReader(text), int64(len(text)), sha256.Sum256(text))); err != nil {
		return fmt.Errorf("drop release %q: %w", id, err)
	}
	return nil
}

// Restore takes back that a release was dropped a moment ago: its manifest comes in place of the tombstone; with none, in
// the plain layout, the tombstone goes. Where there is no tombstone there is nothing to do. After [Store.PushTime] it is too
// late for a manifest, ErrNotFound: what the release was made of may be gone. Of the plain layout a listing tells whether all is there.
func (s *Store) Restore(ctx context.Context, id release.ID, manifest []byte) error {
	found, now, err := s.find(ctx, id)
	switch {
	case err == nil && !found.Dropped, errors.Is(err, ErrNotFound) && manifest == nil:
		return nil
	case err == nil && manifest != nil && age(now, &found.Stored.Modified) > s.PushTime():
		err = fmt.Errorf("it was dropped too long ago: contents are %w", ErrNotFound)
	case err == nil && manifest != nil:
		err = s.replace(ctx, found.Stored, manifest)
	case err == nil:
		err = s.erase(ctx, found.Stored)
	}
	if err != nil {
		return fmt.Errorf("restore release %q: %w", id, err)
	}
	return nil
}

// Delete removes a pack, a delta or a tombstone that the caller found to be referenced by no manifest. It is the
// last of several guards: the object must still be the one that was listed (else ErrChanged), it must be older than
// [Grace] by S3's own clock (else ErrYoung), what stands for a release must be a tombstone (else ErrExists). No
// other object can be named. One that is gone is a success.
//
// What the caller found holds for a while: past notAfter by S3's clock, see [Store.Holds], nothing is deleted (ErrStale). A machine that
// slept meanwhile would delete what others have begun to need.
//
// A pack that a push renews has the same ETag as before, so between the last look and the deletion nothing guards
// it. That is [DeleteTime] at most (else ErrUnavailable): a push that renewed a pack looks at it again when that is over.
func (s *Store) Delete(caller context.Context, o Stored, notAfter time.Time) error {
	ctx, cancel := context.WithTimeout(onTheWall(caller, time.Now().Add(deleteTime)), deleteTime)
	defer cancel()
	err := s.remove(ctx, o, notAfter)
	if errors.Is(err, context.DeadlineExceeded) && caller.Err() == nil {
		err = fmt.Errorf("%w: not done after %s", ErrUnavailable, deleteTime)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete %q: %w", o.Key, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, o Stored, notAfter time.Time) error {
	if _, ok := parseKey(o.Key); !ok || o.ETag == "" {
		return errors.New("not an object of the packed layout that was listed")
	}
	now, err := s.guard(ctx, o)
	if err == nil {
		err = stale(now, notAfter)
	}
	if err != nil {
		return err
	}
	if err := s.erase(ctx, o); err != nil {
		return err
	}
	s.log.Info("deleted", "object", s.base+o.Key, "size", o.Size, "written", o.Modified, "now", now)
	return nil
}

// erase deletes an object on the condition that it is the one that was found. One that is gone is a success.
func (s *Store) erase(ctx context.Context, o Stored) error {
	in := &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(s.base + o.Key), IfMatch: quoted(o.ETag)}
	_, err := s.client.DeleteObject(ctx, in)
	if err = explained(ctx, err); errors.Is(err, errUnsupported) {
		in.IfMatch = nil // an older server: what was seen a moment ago has to do
		_, err = s.client.DeleteObject(ctx, in)
		err = explained(ctx, err)
	}
	if errors.Is(err, ErrChanged) { // or a retry that met its own success
		if _, _, gone := s.head(ctx, o.Key); errors.Is(gone, ErrNotFound) {
			return nil
		}
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete object: %w", err)
	}
	return nil
}

// A key below the site that no object has, and what would be its ETag.
const (
	nothing = "check/nothing"
	noETag  = "00000000000000000000000000000000"
)

// TryDelete asks to delete an object that is not there, on the condition that it is some other: that changes nothing, and leaves no marker in a
// bucket with versions. It fails with ErrDenied, or as every request does, where a clean-up would.
func (s *Store) TryDelete(ctx context.Context) error {
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(s.base + nothing), IfMatch: quoted(noETag)})
	err = explained(ctx, err)
	for _, allowed := range []error{ErrNotFound, ErrChanged, errUnsupported} {
		if errors.Is(err, allowed) {
			return nil
		}
	}
	return err
}

// guard refuses what must not be deleted, as it stands now.
func (s *Store) guard(ctx context.Context, o Stored) (now time.Time, err error) {
	var is Stored
	if strings.HasPrefix(o.Key, "m/") {
		var found Found
		found, now, err = s.find(ctx, o.Release)
		if err == nil && !found.Dropped {
			err = fmt.Errorf("%w: a manifest, and no tombstone", ErrExists)
		}
		is = found.Stored
	} else {
		is, now, err = s.head(ctx, o.Key)
	}
	switch {
	case err != nil:
		return now, err
	case is.ETag != o.ETag || is.Key != o.Key:
		return now, ErrChanged
	case now.IsZero():
		return now, fmt.Errorf("%w, as S3 does not say what time it is", ErrYoung)
	}
	return now, s.old(now, is.Modified)
}

// stale fails with ErrStale past the time until which holds what was found.
func stale(now, notAfter time.Time) error {
	if late := now.Sub(notAfter); late > 0 {
		return fmt.Errorf("%w: it held until %s ago", ErrStale, late.Round(time.Second))
	}
	return nil
}

// old fails with ErrYoung unless an object of this time is older than the grace.
func (s *Store) old(now, modified time.Time) error {
	if age := now.Sub(modified); age <= s.grace {
		return fmt.Errorf("%w: written %s ago, deletable after %s", ErrYoung, age.Round(time.Second), s.grace)
	}
	return nil
}

// explained is explain for requests that may have worked.
func explained(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return explain(ctx, err, ErrNotFound)
}
