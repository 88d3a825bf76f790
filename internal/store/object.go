package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"s3pulldeploy/internal/release"
)

const (
	resumes      = 5       // new tries of a reader that gets nowhere
	resumeWorthy = 1 << 20 // bytes since the last cut after which the tries count anew
)

// Open returns the contents of an object as it was listed. It fails with ErrChanged when the object
// is another one by now and with ErrNotFound when it is gone.
//
// The reader lives as long as ctx and must be closed. After a cut it goes on where it was. Its last
// read fails with ErrDamaged, instead of io.EOF, when the contents do not have the listed size or,
// where S3 says that the ETag is their MD5, not that sum: nothing that was read may be used then.
func (s *Store) Open(ctx context.Context, id release.ID, obj release.Object) (io.ReadCloser, error) {
	r := &reader{store: s, ctx: ctx, what: fmt.Sprintf("object %q", obj.Path), key: s.key(id, obj.Path), etag: obj.ETag, size: obj.Size}
	if err := r.start(); err != nil {
		return nil, err
	}
	return r, nil
}

// reader is an object's contents, or a range of them, over as many connections as it takes.
type reader struct {
	store *Store
	ctx   context.Context // Open's: a reader has no other way to hear of an end
	what  string          // for errors
	key   string
	etag  string   // empty: any
	from  int64    // where in the object
	size  int64    // bytes to read
	part  bool     // of an object; else it must end after size
	learn *learned // not nil: whatever is there, of at most size bytes, and this says what that was

	body io.ReadCloser
	sum  hash.Hash // nil: the ETag is not an MD5
	at   int64     // bytes handed out
	cut  int64     // at, when the connection broke last
	cuts int       // times that it broke without getting much further
	err  error     // of every further Read
}

// start opens a new reader.
func (r *reader) start() error {
	if err := r.open(); err != nil {
		return r.fail(err)
	}
	return nil
}

// open asks for what is left to read.
func (r *reader) open() error {
	in := &s3.GetObjectInput{Bucket: &r.store.bucket, Key: &r.key}
	if r.etag != "" {
		in.IfMatch = quoted(r.etag)
	}
	switch first := r.from + r.at; {
	case r.part:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", first, r.from+r.size-1))
	case first > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", first))
	}
	sums := quiet
	if in.Range != nil {
		sums = unsummed
	}
	out, err := r.store.client.GetObject(r.ctx, in, sums)
	if err != nil {
		return fmt.Errorf("get object: %w", maybeMissing(explain(r.ctx, err, ErrNotFound)))
	}
	r.body = out.Body
	if err := cmp.Or(r.accept(out), r.check(out)); err != nil {
		r.body.Close()
		return fmt.Errorf("get object: %w", err)
	}
	if r.at == 0 && !r.part && r.store.etagIsMD5(r.etag, out.ServerSideEncryption) {
		r.sum = md5.New()
	}
	return nil
}

// learned is an object that was read without knowing it, and S3's clock.
type learned struct {
	Stored
	date time.Time
}

// accept makes an object the one to be read.
func (r *reader) accept(out *s3.GetObjectOutput) error {
	if r.learn == nil || r.etag != "" {
		return nil
	}
	size := aws.ToInt64(out.ContentLength)
	if size > r.size {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, size, r.size)
	}
	r.size, r.etag = size, unquoted(out.ETag)
	*r.learn = learned{
		Stored{Size: size, ETag: r.etag, Modified: aws.ToTime(out.LastModified)}, answered(out.ResultMetadata),
	}
	return nil
}

// check refuses an answer that is not what is left to read.
func (r *reader) check(out *s3.GetObjectOutput) error {
	first := r.from + r.at
	if (r.part || first > 0) && !strings.HasPrefix(aws.ToString(out.ContentRange), fmt.Sprintf("bytes %d-", first)) {
		return fmt.Errorf("%w: asked from byte %d, got %q", ErrUnavailable, first, aws.ToString(out.ContentRange))
	}
	if rest := r.size - r.at; out.ContentLength != nil && *out.ContentLength != rest {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrDamaged, *out.ContentLength, rest)
	}
	return nil
}

// etagIsMD5 says whether an ETag is known to be the MD5 of the contents: not after a multipart
// upload, and not with keys of KMS. With S3's own encryption it is on AWS, elsewhere it may not be.
func (s *Store) etagIsMD5(etag string, sse types.ServerSideEncryption) bool {
	if raw, err := hex.DecodeString(etag); err != nil || len(raw) != md5.Size {
		return false
	}
	return sse == "" || sse == types.ServerSideEncryptionAes256 && s.aws
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	for {
		n, err := r.body.Read(p)
		r.at += int64(n)
		if r.sum != nil {
			r.sum.Write(p[:n])
		}
		switch {
		case r.at > r.size:
			return 0, r.fail(fmt.Errorf("%w: more than %d bytes", ErrDamaged, r.size))
		case r.at == r.size && err != nil:
			r.err = r.finish(err)
		case err != nil:
			r.err = r.resume(err)
		}
		if n > 0 {
			return n, nil // the error, if any, comes with the next call
		}
		if r.err != nil {
			return 0, r.err
		}
	}
}

// finish is what the reader ends with after all its bytes: io.EOF if they are the right ones.
func (r *reader) finish(err error) error {
	if err != io.EOF { // the SDK compares the checksum that the object was stored with
		return r.fail(fmt.Errorf("%w: %s", ErrDamaged, reason(err)))
	}
	if r.sum != nil {
		want, _ := hex.DecodeString(r.etag) // etagIsMD5 has seen it
		if got := r.sum.Sum(nil); !bytes.Equal(got, want) {
			return r.fail(fmt.Errorf("%w: MD5 %x instead of %x", ErrDamaged, got, want))
		}
	}
	return io.EOF
}

// resume goes on after a cut; it returns why it gave up.
func (r *reader) resume(cause error) error {
	r.body.Close()
	if r.at-r.cut >= resumeWorthy {
		r.cuts = 0
	}
	r.cut = r.at
	for {
		r.cuts++
		if r.cuts > resumes {
			return r.fail(fmt.Errorf("%w: cut at byte %d of %d: %s", ErrUnavailable, r.at, r.size, reason(cause)))
		}
		if err := wait(r.ctx, r.store.delay(r.cuts)); err != nil {
			return r.fail(err)
		}
		r.store.log.Debug("connection cut, going on", "object", r.key, "at", r.at, "size", r.size, "error", cause)
		err := r.open()
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrUnavailable) {
			return r.fail(err)
		}
		cause = err
	}
}

func (r *reader) fail(err error) error {
	r.err = fmt.Errorf("read %s: %w", r.what, err)
	return r.err
}

func (r *reader) Close() error {
	if r.err == nil {
		r.err = errors.New("read of a closed object")
	}
	return r.body.Close()
}

// wait sleeps for d, or fails when ctx ends before.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
