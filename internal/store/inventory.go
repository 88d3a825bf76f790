package store

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"s3pulldeploy/internal/release"
)

// Grace is how old, by S3's clock, a tombstone and everything that no manifest names must be to be deleted.
const Grace = 24 * time.Hour

// Grace is how old what nobody needs must be to be deleted: the constant, but in tests.
func (s *Store) Grace() time.Duration { return s.grace }

// PushTime is how long a push may take from its first look at manifests and packs to the pointer: half of the grace.
func (s *Store) PushTime() time.Duration { return s.grace / 2 }

// Reliable says whether a push may rely on an object of this age although nobody references it: up to a quarter of the grace.
// With [Store.PushTime] on top it outlives the push, with another quarter for clocks that are not exact.
func (s *Store) Reliable(age time.Duration) bool { return age <= s.grace/4 }

// Holds is until when what was read from the bucket at a time of S3's may be deleted by: a quarter of the grace. What is older than the
// grace by then and was needed by nobody is needed by no push that began before.
func (s *Store) Holds(read time.Time) time.Time { return read.Add(s.grace / 4) }

// Stored is an object of the packed layout as it was listed.
type Stored struct {
	Key      string     // below <prefix><site>/, as release.Source.Key has it
	Release  release.ID // of a manifest or delta; empty for a pack
	Size     int64
	ETag     string    // without quotes
	Modified time.Time // by S3's clock
}

// Inventory is what a listing found, in the order of keys.
type Inventory struct {
	Objects []Stored
	Date    time.Time // S3's clock when the listing began; zero if it did not say
}

// Age is how long ago an object was written; without S3's clock it counts as older than anything.
func (i Inventory) Age(o Stored) time.Duration { return age(i.Date, &o.Modified) }

func age(now time.Time, modified *time.Time) time.Duration {
	if now.IsZero() || modified == nil || modified.IsZero() {
		return time.Duration(1<<63 - 1)
	}
	return now.Sub(*modified)
}

// Manifests lists the manifests, tombstones among them.
func (s *Store) Manifests(ctx context.Context) (Inventory, error) { return s.inventory(ctx, "m/") }

// Deltas lists the deltas.
func (s *Store) Deltas(ctx context.Context) (Inventory, error) { return s.inventory(ctx, "d/") }

// Packs lists the packs, whoever references them. A push need not send one that has its size and is
// [Store.Reliable], or that a manifest references; all others go to [Store.PutPack].
func (s *Store) Packs(ctx context.Context) (Inventory, error) { return s.inventory(ctx, "p/") }

// inventory lists one of the layout's folders, complete or not at all. Objects whose names are not of the layout are
// left out: they are somebody else's and must not be deleted.
func (s *Store) inventory(ctx context.Context, folder string) (Inventory, error) {
	prefix := s.base + folder
	var inv Inventory
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return Inventory{}, fmt.Errorf("list %q: list objects: %w", prefix, explain(ctx, err, ErrNoBucket))
		}
		if inv.Date.IsZero() {
			inv.Date = answered(page.ResultMetadata)
		}
		for _, o := range page.Contents {
			key := strings.TrimPrefix(aws.ToString(o.Key), s.base)
			if id, ok := parseKey(key); ok {
				inv.Objects = append(inv.Objects, Stored{
					Key: key, Release: id, Size: aws.ToInt64(o.Size),
					ETag: unquoted(o.ETag), Modified: aws.ToTime(o.LastModified),
				})
			}
		}
		if len(inv.Objects) > release.MaxFiles {
			return Inventory{}, fmt.Errorf("list %q: %w: more than %d objects", prefix, ErrTooLarge, release.MaxFiles)
		}
	}
	return inv, nil
}

// parseKey accepts a key of the packed layout and says whose manifest or delta it is.
func parseKey(key string) (release.ID, bool) {
	folder, name, _ := strings.Cut(key, "/")
	switch folder {
	case "m":
		id, err := release.ParseID(name)
		return id, err == nil
	case "d":
		name, parent, _ := strings.Cut(name, "/")
		id, err := release.ParseID(name)
		_, parentErr := release.ParseID(parent)
		return id, err == nil && parentErr == nil
	case "p":
		sum, err := hex.DecodeString(name)
		return "", err == nil && len(sum) == len(release.Sum{}) && strings.ToLower(name) == name
	}
	return "", false
}
