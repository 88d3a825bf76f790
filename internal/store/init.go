package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// What a new bucket's old versions and broken uploads live for.
const (
	oldVersionDays   = 30
	brokenUploadDays = 7
	initTime         = 2 * time.Minute
)

// State is what Init found or did.
type State string

// The states of a step.
const (
	StateOK          State = "ok"          // it was as it should be
	StateCreated     State = "created"     // it was missing and is there now
	StateDiffers     State = "differs"     // it is otherwise; left as it is
	StateUnsupported State = "unsupported" // an S3-compatible server does not know it
	StateDenied      State = "denied"      // the credentials may not read or set it
)

// Step is one line of what Init reports.
type Step struct {
	What   string // "bucket", "public access", "encryption", "versions", "expiry"
	State  State
	Detail string // for a person: what it is or should be
}

// Init creates the bucket in region if it is missing: private, encrypted, with versions, of which old
// ones expire. A bucket that exists but holds nothing yet (somebody made it for this, or an earlier
// Init was interrupted) gets what is not set; whatever is set, and any bucket in use, is only
// compared. The error is for the bucket itself; everything else is a step's state.
func (s *Store) Init(ctx context.Context, region string) ([]Step, error) {
	ctx, cancel := context.WithTimeout(ctx, initTime)
	defer cancel()
	bucket, fresh, err := s.makeBucket(ctx, region)
	if err != nil {
		return nil, fmt.Errorf("init bucket %q: %w", s.bucket, err)
	}
	steps := []Step{bucket}
	for _, p := range s.parts() {
		step, err := p.apply(ctx, fresh)
		if err != nil {
			return steps, fmt.Errorf("init bucket %q: %s: %w", s.bucket, p.what, err)
		}
		steps = append(steps, step)
	}
	return steps, nil
}

// makeBucket finds or creates the bucket; fresh says that nobody uses it yet.
func (s *Store) makeBucket(ctx context.Context, region string) (step Step, fresh bool, err error) {
	step = Step{What: "bucket", State: StateOK, Detail: s.bucket}
	err = s.Exists(ctx)
	if err == nil {
		page, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.bucket, MaxKeys: aws.Int32(1)})
		if err != nil {
			return step, false, fmt.Errorf("list objects: %w", explain(ctx, err, ErrNoBucket))
		}
		return step, len(page.Contents) == 0, nil
	}
	if !errors.Is(err, ErrNoBucket) {
		return step, false, err
	}
	in := &s3.CreateBucketInput{Bucket: &s.bucket}
	if region != "" && region != "us-east-1" { // which S3 does not accept by its name
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{
			LocationConstraint: types.BucketLocationConstraint(region),
		}
	}
	_, err = s.client.CreateBucket(ctx, in)
	var ours *types.BucketAlreadyOwnedByYou // a retry met its own success
	if err != nil && !errors.As(err, &ours) {
		return step, false, fmt.Errorf("create bucket: %w", explain(ctx, err, ErrNoBucket))
	}
	step.State = StateCreated
	return step, true, nil
}

// part is one property of a bucket.
type part struct {
	what string
	want string // for a person
	// get says how it is set; "" means not at all, want that it is right.
	get func(context.Context) (string, error)
	set func(context.Context) error
}

// apply compares one part and, in a fresh bucket, sets what is not set.
func (p part) apply(ctx context.Context, fresh bool) (Step, error) {
	step := Step{What: p.what, State: StateOK, Detail: p.want}
	have, err := p.get(ctx)
	err = unset(err)
	if err == nil && have == "" && fresh {
		step.State = StateCreated
		err = p.set(ctx)
	} else if err == nil && have != p.want {
		step.State = StateDiffers
		if have == "" {
			have = "not set"
		}
		step.Detail = have + "; recommended: " + p.want
	}
	if err == nil {
		return step, nil
	}
	err = explain(ctx, err, ErrNoBucket)
	step.Detail = err.Error()
	switch {
	case errors.Is(err, errUnsupported):
		step.State = StateUnsupported
	case errors.Is(err, ErrDenied):
		step.State = StateDenied
	default:
		return step, err
	}
	return step, nil
}

// unset turns the ways in which S3 says "nothing is configured" into no error.
func unset(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
		case "NoSuchPublicAccessBlockConfiguration", "NoSuchLifecycleConfiguration",
			"ServerSideEncryptionConfigurationNotFoundError":
			return nil
		}
	}
	return err
}
