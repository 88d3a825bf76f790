package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"s3pulldeploy/internal/release"
)

// Clear deletes the objects of a release of the plain layout that was dropped, markers for directories too, and returns how many and how many bytes
// that were. It fails with ErrExists where no tombstone stands for the release, and with ErrYoung while that, or
// an object, is not older than the grace. It fails with ErrStale as
// [Store.Delete] does. One that died goes on where it was; the tombstone stays for the caller to delete.
func (s *Store) Clear(ctx context.Context, id release.ID, notAfter time.Time) (objects int, size int64, err error) {
	if objects, size, err = s.clear(ctx, id, notAfter); err != nil {
		err = fmt.Errorf("clear release %q: %w", id, err)
	}
	return objects, size, err
}

func (s *Store) clear(ctx context.Context, id release.ID, notAfter time.Time) (objects int, size int64, err error) {
	if _, err := release.ParseID(string(id)); err != nil {
		return 0, 0, err
	}
	found, now, err := s.find(ctx, id)
	if err == nil && !found.Dropped {
		err = fmt.Errorf("%w: it was not dropped", ErrExists)
	}
	if err == nil {
		err = s.old(now, found.Stored.Modified)
	}
	if err == nil {
		err = stale(now, notAfter)
	}
	if err != nil {
		return 0, 0, err
	}
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s.key(id, ""))})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return objects, size, fmt.Errorf("list objects: %w", explain(ctx, err, ErrNoBucket))
		}
		n, bytes, err := s.clearPage(ctx, page.Contents, now)
		objects, size = objects+n, size+bytes
		if err != nil {
			return objects, size, err
		}
	}
	s.log.Info("cleared", "release", id, "objects", objects, "size", size)
	return objects, size, nil
}

// clearPage deletes the at most 1,000 objects of a page of a listing in one request, unless one of them is young.
func (s *Store) clearPage(ctx context.Context, page []types.Object, now time.Time) (objects int, size int64, err error) {
	if len(page) == 0 {
		return 0, 0, nil
	}
	doomed := &types.Delete{Quiet: aws.Bool(true)}
	for _, o := range page {
		if err := s.old(now, aws.ToTime(o.LastModified)); err != nil {
			return 0, 0, fmt.Errorf("%q: %w", aws.ToString(o.Key), err)
		}
		doomed.Objects = append(doomed.Objects, types.ObjectIdentifier{Key: o.Key})
		size += aws.ToInt64(o.Size)
	}
	out, err := s.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &s.bucket, Delete: doomed})
	if err != nil {
		return 0, 0, fmt.Errorf("delete objects: %w", explain(ctx, err, ErrNoBucket))
	}
	if len(out.Errors) > 0 {
		first := out.Errors[0]
		return 0, 0, fmt.Errorf("delete %q: %w", aws.ToString(first.Key), refusal(aws.ToString(first.Code), aws.ToString(first.Message)))
	}
	return len(page), size, nil
}

// refusal is one of our errors for one object of several.
func refusal(code, message string) error {
	if code == "AccessDenied" {
		return with(ErrDenied, message)
	}
	return errors.New(code + ": " + message)
}
