// Package store holds the releases of one site in S3 and speaks about them in the domain's words. S3's
// SDK appears nowhere else.
//
// Objects, below the bucket:
//
//	<prefix><site>/latest-deploy             the pointer: which release to run
//	<prefix><site>/<release>/<path>          plain layout: contents, one object a file
//	<prefix><site>/m/<release>               packed layout: the manifest, or the tombstone of a dropped release
//	<prefix><site>/d/<release>/<parent>      packed layout: a delta
//	<prefix><site>/p/<sha256>                packed layout: a pack, named by its bytes
//
// Parties. push writes, agents only read. Contents never change: they are written under the condition
// that nothing is there yet. The pointer is replaced under the condition that it is still the one that was
// read.
//
// Order of writes: contents first, then delta and manifest, the pointer last. A push that dies leaves objects
// that no pointer names; a push that runs again finds them and goes on. A pack on a cut connection is sent again,
// and nothing else.
//
// Dropping. Where a release's manifest stands, or would stand in the plain layout, a tombstone is put, under the
// condition that what was listed is still there: the line "s3pdtomb1", and a line for each key of a pack or delta that
// the release was made of. From then on nobody can deploy it. [Grace] later its objects may be deleted: those of the plain layout,
// and each pack or delta that is itself older than that, that no manifest references, and no younger tombstone names; the
// tombstone at last. Nothing else is ever deleted, the pointer and what others keep in the bucket cannot be.
//
// Why that is safe. Every age is the difference of two times of S3's, and a push ends within half of the grace, its
// [Store.PushTime]. What it relies on was, when it looked, referenced by a manifest, so that a tombstone
// that names it is younger than PushTime when the push ends; or referenced by nobody and [Store.Reliable]. What is older
// it writes anew, and looks again before its manifest, see [Store.Delete]. So no push, at whatever moment another clean-up
// runs, stops or dies, names what is deleted, while a clean-up acts on lists that are no older than [Store.Holds] says: it asks S3's clock at each
// deletion. A pointer that goes back to a release in the moment in which that is dropped:
// both write first and then look at what the other wrote, and who sees the other puts the manifest back ([Store.Restore]).
//
// Ambiguity. A request whose answer is lost may have worked, and a retry of a conditional write that
// worked is refused. So every refused or unanswered write is followed by a look at what is there:
// our own bytes are a success, however they got there.
//
// Trust. Objects of the plain layout are read under the ETag of the listing and must have its size; where the
// ETag is known to be the contents' MD5, that must agree too. A manifest or delta must have the SHA-256 and length
// that the caller knows from the pointer. Ranges of packs have no sum of their own: who reads them verifies each
// file. Everything is refused before more than its known or largest size is read. What names and texts mean is
// package release's business.
//
// Time. There is no total limit on a transfer; a request in which no byte moves for 30 seconds (4 where it reads the pointer) is
// given up. Requests are repeated up to five times when the network, a throttle or the server is
// the reason; a reader whose connection breaks goes on from where it was.
//
// Errors are one of the sentinels and read as a path of actions; no type of the SDK leaves.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"

	"s3pulldeploy/internal/release"
)

const (
	attempts   = 6                      // of one request, the first included: 6 seconds of pauses
	firstPause = 200 * time.Millisecond // between two of them; each doubles the one before
	maxPause   = 5 * time.Second
	stallLimit = 30 * time.Second // without a byte in either direction
)

// Options says which site's releases, and how to reach them.
type Options struct {
	Config   aws.Config   // credentials, region, HTTP client
	Endpoint string       // an S3-compatible server's URL, addressed by path; empty: AWS
	Bucket   string       // required
	Prefix   string       // before the site in every key: empty, or ending in a slash
	Site     string       // required
	KMSKey   string       // key for SSE-KMS of what is written; empty: the bucket's default
	Logger   *slog.Logger // nil: silent

	Grace time.Duration // in place of [Grace], for tests; 0: that
}

// Store is one site's part of a bucket. It is safe for concurrent use.
type Store struct {
	client    *s3.Client
	transport *transport
	bucket    string
	base      string // <prefix><site>/
	kmsKey    string
	aws       bool // the real S3, whose documentation holds
	checksums bool // send SHA-256 with what is written
	log       *slog.Logger
	grace     time.Duration
	pause     time.Duration // before the first new try of anything
}

// New returns the store of one site. It sends nothing.
func New(o Options) *Store {
	next := o.Config.HTTPClient
	if next == nil {
		next = awshttp.NewBuildableClient()
	}
	s := &Store{
		transport: &transport{next: next, limit: stallLimit},
		bucket:    o.Bucket,
		base:      o.Prefix + o.Site + "/",
		kmsKey:    o.KMSKey,
		aws:       o.Endpoint == "",
		// Who turns checksums off for an old server (AWS_REQUEST_CHECKSUM_CALCULATION) means these too.
		checksums: o.Config.RequestChecksumCalculation != aws.RequestChecksumCalculationWhenRequired,
		log:       o.Logger,
		grace:     cmp.Or(o.Grace, Grace),
		pause:     firstPause,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.client = s3.NewFromConfig(o.Config, func(c *s3.Options) {
		c.HTTPClient = s.transport
		c.Credentials = provider{o.Config.Credentials}
		c.Logger = logging.Nop{}
		c.RetryMaxAttempts = attempts // else the configuration's would hold
		c.Retryer = retry.NewStandard(s.retries)
		if o.Endpoint != "" {
			c.BaseEndpoint = aws.String(o.Endpoint)
		}
		// A dot in a bucket's name breaks the certificate of <bucket>.s3.amazonaws.com.
		c.UsePathStyle = o.Endpoint != "" || strings.Contains(o.Bucket, ".")
	})
	return s
}

// retries adds to what the SDK tries again. Every request here may be repeated: reads, and writes
// under a condition.
func (s *Store) retries(r *retry.StandardOptions) {
	r.Backoff = retry.BackoffDelayerFunc(func(tries int, _ error) (time.Duration, error) {
		return s.delay(tries), nil
	})
	r.Retryables = append(r.Retryables,
		// Two writers in the same instant, neither of which may have won.
		retry.RetryableErrorCode{Codes: conflictCodes},
		retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusTooManyRequests: {}}},
		// A listing that was cut in the middle.
		retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
			var parse *smithy.DeserializationError
			if errors.As(err, &parse) {
				return aws.TrueTernary
			}
			return aws.UnknownTernary
		}))
}

// delay is how long to wait after so many tries: half fixed and half by chance, so that many who
// were cut off at once do not come back at once.
func (s *Store) delay(tries int) time.Duration {
	d := min(maxPause, s.pause<<min(max(tries-1, 0), 10))
	return d/2 + rand.N(d/2+1)
}

// key is an object's key in the bucket.
func (s *Store) key(id release.ID, path string) string {
	return s.base + string(id) + "/" + path
}

// Exists fails with ErrNoBucket when there is no such bucket, with ErrRegion when it is elsewhere,
// with ErrDenied when the credentials may not list the site in it. It asks for a listing, because a
// HEAD has no room for the reason of a refusal and none for a policy that allows one prefix only.
func (s *Store) Exists(ctx context.Context) error {
	_, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: &s.bucket, Prefix: &s.base, MaxKeys: aws.Int32(1),
	})
	if err != nil {
		return fmt.Errorf("find bucket %q: list objects: %w", s.bucket, explain(ctx, err, ErrNoBucket))
	}
	return nil
}

// Counts is what a store did since New, its tries after failures included.
type Counts struct {
	Requests int64
	Sent     int64 // bytes of request bodies
	Received int64 // bytes of response bodies
}

// Counts returns the totals so far.
func (s *Store) Counts() Counts {
	t := s.transport
	return Counts{Requests: t.requests.Load(), Sent: t.sent.Load(), Received: t.received.Load()}
}
