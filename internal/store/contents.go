package store

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"s3pulldeploy/internal/release"
)

// MaxUpload is the largest file that Upload takes, in bytes: what S3 takes in one request, in which
// nothing needs to be held in memory.
const MaxUpload = 5 << 30

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

// Upload writes one file of a release: size bytes of body, which is read from its start, more than
// once where a request is repeated, and not closed. The same contents already there are a success,
// other contents ErrExists. A body that cannot be read, or has another size, fails with its own error.
func (s *Store) Upload(ctx context.Context, id release.ID, path string, body io.ReadSeeker, size int64) error {
	if err := s.upload(ctx, s.key(id, path), &source{ReadSeeker: body}, size); err != nil {
		return fmt.Errorf("upload %q: %w", path, err)
	}
	return nil
}

func (s *Store) upload(ctx context.Context, key string, body *source, size int64) error {
	if size > MaxUpload {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, size, int64(MaxUpload))
	}
	if err := body.measure(size); err != nil {
		return err
	}
	in := &s3.PutObjectInput{
		Bucket: &s.bucket, Key: &key, Body: body, ContentLength: &size, IfNoneMatch: aws.String("*"),
	}
	s.protect(in)
	_, err := s.client.PutObject(ctx, in)
	switch {
	case err == nil:
		return nil
	case body.err != nil:
		return body.err
	}
	err = explain(ctx, err, ErrNoBucket)
	if !errors.Is(err, ErrChanged) && !errors.Is(err, errBusy) {
		return fmt.Errorf("put object: %w", err)
	}
	// Somebody wrote it before: an earlier run, our own try whose answer was lost, or another push.
	return s.compare(ctx, key, body, size)
}

// compare fails with ErrExists unless the object at key is the body. Our own objects carry a
// SHA-256; others are compared by their MD5, where the ETag is one.
func (s *Store) compare(ctx context.Context, key string, body *source, size int64) error {
	head, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket: &s.bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled,
	})
	if err != nil {
		return fmt.Errorf("head object: %w", maybeMissing(explain(ctx, err, ErrNotFound)))
	}
	if have := aws.ToInt64(head.ContentLength); have != size {
		return fmt.Errorf("%w with %d bytes instead of %d", ErrExists, have, size)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sha, sum := sha256.New(), md5.New()
	if _, err := io.Copy(io.MultiWriter(sha, sum), body); err != nil {
		return err
	}
	same := unquoted(head.ETag) == hex.EncodeToString(sum.Sum(nil))
	if head.ChecksumSHA256 != nil {
		same = *head.ChecksumSHA256 == base64.StdEncoding.EncodeToString(sha.Sum(nil))
	}
	if !same {
		return fmt.Errorf("%w with other contents", ErrExists)
	}
	return nil
}

// source remembers why a body could not be read: the SDK would call that a network error.
type source struct {
	io.ReadSeeker
	err error
}

func (b *source) Read(p []byte) (int, error) {
	n, err := b.ReadSeeker.Read(p)
	if err != nil && err != io.EOF {
		b.err = fmt.Errorf("read contents: %w", err)
	}
	return n, err
}

// measure refuses a body that is not size bytes long and rewinds it: a file that grew or shrank
// since it was scanned would otherwise end as a stall or a broken connection.
func (b *source) measure(size int64) error {
	end, err := b.Seek(0, io.SeekEnd)
	if err == nil && end != size {
		err = fmt.Errorf("%w: %d bytes instead of %d", ErrChanged, end, size)
	}
	if err == nil {
		_, err = b.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("measure contents: %w", err)
	}
	return nil
}
