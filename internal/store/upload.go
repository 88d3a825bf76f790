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
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"s3pulldeploy/internal/release"
)

// MaxUpload is the largest object that is written, in bytes: what S3 takes in one request, in which
// nothing needs to be held in memory.
const MaxUpload = 5 << 30

// Upload writes one file of a release: size bytes of body, which is read from its start, more than
// once where a request is repeated, and not closed. The same contents already there are a success,
// other contents ErrExists. A body that cannot be read, or has another size, fails with its own error.
func (s *Store) Upload(ctx context.Context, id release.ID, path string, body io.ReadSeeker, size int64) error {
	u := &outgoing{key: s.key(id, path), body: source{ReadSeeker: body, size: size}}
	if _, err := s.create(ctx, u); err != nil {
		return fmt.Errorf("upload %q: %w", path, err)
	}
	return nil
}

// outgoing is an object on its way.
type outgoing struct {
	key  string
	body source
	sum  string // SHA-256 in base64; empty: found out while it is sent
}

// standing is an object that was there already.
type standing struct {
	etag string
	age  time.Duration // by S3's clock; the longest there is if S3 did not say
}

// create writes an object where there is none. If the very same one is there it is a success and
// said which one that is; another one is ErrExists.
func (s *Store) create(ctx context.Context, u *outgoing) (*standing, error) {
	err := s.put(ctx, u, &s3.PutObjectInput{IfNoneMatch: aws.String("*")})
	if err == nil || u.body.err != nil || !errors.Is(err, ErrChanged) && !errors.Is(err, errBusy) {
		return nil, err
	}
	// Somebody wrote it before: an earlier run, our own try whose answer was lost, or another push.
	old, err := s.compare(ctx, u)
	if err == nil {
		meterOf(ctx).add(u.body.size)
	}
	return old, err
}

// put sends an object under the condition in the request.
func (s *Store) put(ctx context.Context, u *outgoing, in *s3.PutObjectInput) error {
	if u.body.size > MaxUpload {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, u.body.size, int64(MaxUpload))
	}
	if err := u.body.measure(); err != nil {
		return err
	}
	in.Bucket, in.Key, in.Body, in.ContentLength = &s.bucket, &u.key, &u.body, &u.body.size
	s.protect(in)
	if s.checksums && u.sum != "" {
		in.ChecksumSHA256 = &u.sum // S3 refuses other bytes than these, and we read them once
	}
	sent := meterOf(ctx).start()
	_, err := s.client.PutObject(context.WithValue(ctx, sentKey{}, sent), in)
	if err == nil {
		sent.end(u.body.size)
		return nil
	}
	sent.end(0)
	if u.body.err != nil {
		return u.body.err
	}
	missing := ErrNoBucket
	if in.IfMatch != nil {
		missing = ErrNotFound
	}
	return fmt.Errorf("put object: %w", explain(ctx, err, missing))
}

// compare fails with ErrExists unless the object that is there is the one on its way. Our own objects
// carry a SHA-256; others are compared by their MD5, where the ETag is one.
func (s *Store) compare(ctx context.Context, u *outgoing) (*standing, error) {
	head, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket: &s.bucket, Key: &u.key, ChecksumMode: types.ChecksumModeEnabled,
	})
	if err != nil {
		return nil, fmt.Errorf("head object: %w", maybeMissing(explain(ctx, err, ErrNotFound)))
	}
	if have := aws.ToInt64(head.ContentLength); have != u.body.size {
		return nil, fmt.Errorf("%w with %d bytes instead of %d", ErrExists, have, u.body.size)
	}
	if _, err := u.body.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	sha, sum := sha256.New(), md5.New()
	if _, err := io.Copy(io.MultiWriter(sha, sum), &u.body); err != nil {
		return nil, err
	}
	same := unquoted(head.ETag) == hex.EncodeToString(sum.Sum(nil))
	if head.ChecksumSHA256 != nil {
		same = *head.ChecksumSHA256 == base64.StdEncoding.EncodeToString(sha.Sum(nil))
	}
	if !same {
		return nil, fmt.Errorf("%w with other contents", ErrExists)
	}
	return &standing{unquoted(head.ETag), age(answered(head.ResultMetadata), head.LastModified)}, nil
}

// source remembers why a body could not be read: the SDK would call that a network error.
type source struct {
	io.ReadSeeker
	size, at int64
	err      error
}

func (b *source) Read(p []byte) (int, error) {
	n, err := b.ReadSeeker.Read(p)
	b.at += int64(n)
	if err == io.EOF && b.at < b.size {
		err = fmt.Errorf("%w: it ends at byte %d of %d", ErrChanged, b.at, b.size)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read contents: %w", err)
		b.err = err
	}
	return n, err
}

func (b *source) Seek(offset int64, whence int) (int64, error) {
	at, err := b.ReadSeeker.Seek(offset, whence)
	b.at = at
	return at, err
}

// measure refuses a body of another size and rewinds it: a file that grew or shrank since it was
// scanned would otherwise end as a stall or a broken connection.
func (b *source) measure() error {
	end, err := b.Seek(0, io.SeekEnd)
	if err == nil && end != b.size {
		err = fmt.Errorf("%w: %d bytes instead of %d", ErrChanged, end, b.size)
	}
	if err == nil {
		_, err = b.Seek(0, io.SeekStart)
	}
	if err != nil {
		b.err = fmt.Errorf("measure contents: %w", err)
		return b.err
	}
	return nil
}
