package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"s3pulldeploy/internal/release"
)

// List returns all objects of a release, in the order of their keys, however many pages that takes:
// complete or not at all. An unknown release is an empty listing. Markers that consoles and sync
// tools leave for directories (a key that ends in a slash, without contents) are left out. It fails
// with ErrTooLarge above release.MaxFiles.
func (s *Store) List(ctx context.Context, id release.ID) (release.Listing, error) {
	prefix := s.key(id, "")
	var listing release.Listing
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list release %q: list objects: %w", id, explain(ctx, err, ErrNoBucket))
		}
		for _, o := range page.Contents {
			path := strings.TrimPrefix(aws.ToString(o.Key), prefix)
			size := aws.ToInt64(o.Size)
			if size == 0 && (path == "" || strings.HasSuffix(path, "/")) {
				continue
			}
			listing = append(listing, release.Object{
				Path: path, Size: size, ETag: unquoted(o.ETag), Modified: aws.ToTime(o.LastModified),
			})
		}
		if len(listing) > release.MaxFiles {
			return nil, fmt.Errorf("list release %q: %w: more than %d objects", id, ErrTooLarge, release.MaxFiles)
		}
	}
	return listing, nil
}

// Releases returns the ids below the site, newest first by name, whether or not a pointer ever named
// them: an upload that is under way or was given up has one too. Other folders are not mentioned.
func (s *Store) Releases(ctx context.Context) ([]release.ID, error) {
	var ids []release.ID
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{
		Bucket: &s.bucket, Prefix: &s.base, Delimiter: aws.String("/"),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list releases %q: list objects: %w", s.base, explain(ctx, err, ErrNoBucket))
		}
		for _, folder := range page.CommonPrefixes {
			name := strings.TrimSuffix(strings.TrimPrefix(aws.ToString(folder.Prefix), s.base), "/")
			if id, err := release.ParseID(name); err == nil {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b release.ID) int { return strings.Compare(string(b), string(a)) })
	return ids, nil
}
