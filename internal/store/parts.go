package store

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// parts are the properties that Init looks after, in the order of their importance.
func (s *Store) parts() []part {
	return []part{
		{"public access", "blocked", s.getPublicAccess, s.setPublicAccess},
		{"encryption", "on", s.getEncryption, s.setEncryption},
		{"versions", "kept", s.getVersions, s.setVersions},
		{"expiry", expiryWanted, s.getExpiry, s.setExpiry},
	}
}

var expiryWanted = fmt.Sprintf("old versions after %d days, broken uploads after %d", oldVersionDays, brokenUploadDays)

func (s *Store) getPublicAccess(ctx context.Context) (string, error) {
	out, err := s.client.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &s.bucket})
	if err != nil || out.PublicAccessBlockConfiguration == nil {
		return "", err
	}
	c := out.PublicAccessBlockConfiguration
	for _, on := range []*bool{c.BlockPublicAcls, c.IgnorePublicAcls, c.BlockPublicPolicy, c.RestrictPublicBuckets} {
		if !aws.ToBool(on) {
			return "not all of it blocked", nil
		}
	}
	return "blocked", nil
}

func (s *Store) setPublicAccess(ctx context.Context) error {
	on := aws.Bool(true)
	_, err := s.client.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{
		Bucket: &s.bucket,
		PublicAccessBlockConfiguration: &types.PublicAccessBlockConfiguration{
			BlockPublicAcls: on, IgnorePublicAcls: on, BlockPublicPolicy: on, RestrictPublicBuckets: on,
		},
	})
	return err
}

func (s *Store) getEncryption(ctx context.Context) (string, error) {
	out, err := s.client.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: &s.bucket})
	if err != nil || out.ServerSideEncryptionConfiguration == nil || len(out.ServerSideEncryptionConfiguration.Rules) == 0 {
		return "", err
	}
	return "on", nil
}

func (s *Store) setEncryption(ctx context.Context) error {
	rule := types.ServerSideEncryptionRule{
		ApplyServerSideEncryptionByDefault: &types.ServerSideEncryptionByDefault{SSEAlgorithm: types.ServerSideEncryptionAes256},
	}
	if s.kmsKey != "" {
		rule.ApplyServerSideEncryptionByDefault = &types.ServerSideEncryptionByDefault{
			SSEAlgorithm: types.ServerSideEncryptionAwsKms, KMSMasterKeyID: &s.kmsKey,
		}
		rule.BucketKeyEnabled = aws.Bool(true) // one request to KMS for many objects
	}
	_, err := s.client.PutBucketEncryption(ctx, &s3.PutBucketEncryptionInput{
		Bucket: &s.bucket,
		ServerSideEncryptionConfiguration: &types.ServerSideEncryptionConfiguration{
			Rules: []types.ServerSideEncryptionRule{rule},
		},
	})
	return err
}

func (s *Store) getVersions(ctx context.Context) (string, error) {
	out, err := s.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &s.bucket})
	switch {
	case err != nil || out.Status == "":
		return "", err
	case out.Status == types.BucketVersioningStatusEnabled:
		return "kept", nil
	}
	return "suspended", nil
}

func (s *Store) setVersions(ctx context.Context) error {
	_, err := s.client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
		Bucket:                  &s.bucket,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	})
	return err
}

// getExpiry is satisfied by any rules that end old versions and broken uploads, whatever the days.
func (s *Store) getExpiry(ctx context.Context) (string, error) {
	out, err := s.client.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: &s.bucket})
	if err != nil || len(out.Rules) == 0 {
		return "", err
	}
	versions, uploads := false, false
	for _, r := range out.Rules {
		if r.Status == types.ExpirationStatusEnabled {
			versions = versions || r.NoncurrentVersionExpiration != nil
			uploads = uploads || r.AbortIncompleteMultipartUpload != nil
		}
		// Contents that expire by age would take live releases away.
		if e := r.Expiration; e != nil && r.Status == types.ExpirationStatusEnabled && (e.Days != nil || e.Date != nil) {
			return "a rule expires current objects", nil
		}
	}
	switch {
	case !versions:
		return "old versions never expire", nil
	case !uploads:
		return "broken uploads never expire", nil
	}
	return expiryWanted, nil
}

func (s *Store) setExpiry(ctx context.Context) error {
	_, err := s.client.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{
		Bucket: &s.bucket,
		LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: []types.LifecycleRule{{
			ID:                             aws.String("s3-pull-deploy"),
			Status:                         types.ExpirationStatusEnabled,
			Filter:                         &types.LifecycleRuleFilter{Prefix: aws.String("")},
			NoncurrentVersionExpiration:    &types.NoncurrentVersionExpiration{NoncurrentDays: aws.Int32(oldVersionDays)},
			AbortIncompleteMultipartUpload: &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(brokenUploadDays)},
		}}},
	})
	return err
}
