package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"s3pulldeploy/internal/release"
)

const (
	maxPointer   = 4096             // bytes, signatures included
	pointerStall = 4 * time.Second  // of one try to read it: S3 answers in some 50 ms
	readBackTime = 10 * time.Second // to find out what became of a write
)

// Read is a pointer as it stood when it was read.
type Read struct {
	Text []byte
	ETag string    // without quotes; names this text in a later conditional read or write
	Date time.Time // S3's clock when it answered; zero if it did not say
}

// Pointer reads the pointer. With the ETag of an earlier read it fails with ErrNotModified while
// the pointer is the same; Date is set then too. Other failures: ErrNotFound when nothing was
// pushed yet, ErrTooLarge above 4 KB, and those of every request.
func (s *Store) Pointer(ctx context.Context, etag string) (Read, error) {
	read, err := s.pointer(ctx, etag)
	if err != nil {
		return read, fmt.Errorf("read pointer %q: %w", s.pointerKey(), err)
	}
	return read, nil
}

func (s *Store) pointerKey() string { return s.base + release.PointerName }

func (s *Store) pointer(ctx context.Context, etag string) (Read, error) {
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s.pointerKey())}
	if etag != "" {
		in.IfNoneMatch = quoted(etag)
	}
	out, err := s.client.GetObject(impatient(ctx, pointerStall), in, quiet)
	if err != nil {
		var resp *smithyhttp.ResponseError
		var read Read
		if errors.As(err, &resp) && resp.HTTPStatusCode() == http.StatusNotModified {
			read = Read{ETag: etag, Date: date(resp.Response)}
		}
		return read, fmt.Errorf("get object: %w", maybeMissing(explain(ctx, err, ErrNotFound)))
	}
	defer out.Body.Close()
	read := Read{ETag: unquoted(out.ETag), Date: answered(out.ResultMetadata)}
	// The header is not trusted: one byte above the limit is asked for and enough to know.
	read.Text, err = io.ReadAll(io.LimitReader(out.Body, maxPointer+1))
	if len(read.Text) > maxPointer {
		return Read{Date: read.Date}, fmt.Errorf("%w: above %d bytes", ErrTooLarge, maxPointer)
	}
	if err != nil {
		return Read{Date: read.Date}, fmt.Errorf("get object: %w", explain(ctx, err, ErrNotFound))
	}
	return read, nil
}

// ConflictError says that the pointer is another one than the writer had read. Won is the pointer
// that stands now; its Text is nil when there is none any more.
type ConflictError struct{ Won Read }

func (e *ConflictError) Error() string {
	if e.Won.Text == nil {
		return "the pointer was removed meanwhile"
	}
	name, _, _ := strings.Cut(string(e.Won.Text), "\n")
	return fmt.Sprintf("another push won: the pointer names %.130q", name)
}

// WritePointer replaces the pointer whose ETag was read, or creates it where etag is "", and
// returns the new ETag. It fails with a *ConflictError when another writer was first. When no
// answer came it looks whether the text is there; an ErrUnavailable, or the context's error, means
// that it was not seen there, but may still appear.
func (s *Store) WritePointer(ctx context.Context, text []byte, etag string) (string, error) {
	wrote, err := s.putPointer(ctx, text, etag)
	if err == nil {
		return wrote, nil
	}
	err = fmt.Errorf("write pointer %q: put object: %w", s.pointerKey(), err)
	if !unclear(err) {
		return "", err
	}
	// Also after an interrupt it is worth a moment to know whether the release is on its way.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readBackTime)
	defer cancel()
	won, readErr := s.pointer(ctx, "")
	switch {
	case readErr == nil && bytes.Equal(won.Text, text):
		return won.ETag, nil // ours: the answer was lost, or a retry met its own success
	case readErr != nil && !errors.Is(readErr, ErrNotFound):
		return "", fmt.Errorf("%w; it may have been written: read back: %w", err, readErr)
	case won.ETag != etag:
		return "", fmt.Errorf("write pointer %q: %w", s.pointerKey(), &ConflictError{Won: won})
	}
	return "", err // what was read before still stands
}

// unclear says whether a failed write may have happened, or was refused for what stands there.
func unclear(err error) bool {
	for _, which := range []error{ErrChanged, errBusy, ErrNotFound, ErrUnavailable, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, which) {
			return true
		}
	}
	return false
}

func (s *Store) putPointer(ctx context.Context, text []byte, etag string) (string, error) {
	if len(text) > maxPointer {
		return "", fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, len(text), maxPointer)
	}
	in := &s3.PutObjectInput{
		Bucket:      &s.bucket,
		Key:         aws.String(s.pointerKey()),
		Body:        bytes.NewReader(text),
		ContentType: aws.String("text/plain; charset=utf-8"),
	}
	if etag == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = quoted(etag)
	}
	s.protect(in)
	out, err := s.client.PutObject(ctx, in)
	if err != nil {
		return "", explain(ctx, err, ErrNotFound)
	}
	return unquoted(out.ETag), nil
}

// protect asks for encryption and a checksum of what is written.
func (s *Store) protect(in *s3.PutObjectInput) {
	if s.kmsKey != "" {
		in.ServerSideEncryption = types.ServerSideEncryptionAwsKms
		in.SSEKMSKeyId = &s.kmsKey
	}
	if s.checksums {
		in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256
	}
}

// quiet keeps the SDK from a warning for each object that was stored without a checksum.
func quiet(o *s3.Options) { o.DisableLogOutputChecksumValidationSkipped = true }

// unsummed is for a range. Some servers send the whole object's checksum with it, which it cannot have.
func unsummed(o *s3.Options) {
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
}

func quoted(etag string) *string { return aws.String(`"` + etag + `"`) }

func unquoted(etag *string) string { return strings.Trim(aws.ToString(etag), `"`) }

func date(resp *smithyhttp.Response) time.Time {
	t, _ := http.ParseTime(resp.Header.Get("Date")) // zero when it is missing or odd
	return t
}

func answered(m middleware.Metadata) time.Time {
	if resp, ok := awsmiddleware.GetRawResponse(m).(*smithyhttp.Response); ok {
		return date(resp)
	}
	return time.Time{}
}
