# What sites share, planned without AWS: `terraform init && terraform test -test-directory=mocked`.
# Terraform 1.7 or newer; where it would look by itself, 1.6 would stumble over it at every init.

mock_provider "aws" {
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd" }
  }
}

variables {
  bucket = "deploys"
}

run "as_it_comes" {
  command = plan

  assert {
    condition = alltrue([
      one(aws_s3_bucket_public_access_block.releases).block_public_acls,
      one(aws_s3_bucket_public_access_block.releases).block_public_policy,
      one(aws_s3_bucket_public_access_block.releases).ignore_public_acls,
      one(aws_s3_bucket_public_access_block.releases).restrict_public_buckets,
    ])
    error_message = "the bucket may become public"
  }
  assert {
    condition     = one(one(one(aws_s3_bucket_server_side_encryption_configuration.releases).rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "the bucket is not encrypted with S3's own keys"
  }
  assert {
    condition     = length(aws_kms_key.releases) == 0 && output.kms_key_arn == null
    error_message = "a key is made that nobody asked for"
  }
  assert {
    condition     = one(aws_s3_bucket_versioning.releases.versioning_configuration).status == "Enabled"
    error_message = "what is overwritten or deleted is gone"
  }
  assert {
    condition     = one(one(aws_s3_bucket_lifecycle_configuration.releases).rule).status == "Enabled"
    error_message = "the rule of expiry does nothing"
  }
  assert {
    condition     = one(one(one(aws_s3_bucket_lifecycle_configuration.releases).rule).noncurrent_version_expiration).noncurrent_days == 30
    error_message = "old versions do not expire after 30 days"
  }
  assert {
    condition     = one(one(one(aws_s3_bucket_lifecycle_configuration.releases).rule).abort_incomplete_multipart_upload).days_after_initiation == 7
    error_message = "uploads that broke off are kept for ever"
  }
  assert {
    condition     = length(one(one(aws_s3_bucket_lifecycle_configuration.releases).rule).expiration) == 0
    error_message = "current objects expire: those are releases"
  }
  assert {
    condition     = one(aws_dynamodb_table.fleets.ttl).enabled && one(aws_dynamodb_table.fleets.ttl).attribute_name == "ttl"
    error_message = "what the agents date for deletion stays"
  }
  assert {
    condition     = one(aws_dynamodb_table.fleets.point_in_time_recovery).enabled
    error_message = "the table cannot be recovered"
  }
  assert {
    condition     = aws_dynamodb_table.fleets.billing_mode == "PAY_PER_REQUEST" && aws_dynamodb_table.fleets.hash_key == "pk" && aws_dynamodb_table.fleets.range_key == "sk"
    error_message = "the table is not the one that agents want"
  }
  assert {
    condition     = { for k, t in aws_sns_topic.outcome : k => t.name } == { success = "s3-pull-deploy-success", error = "s3-pull-deploy-error" }
    error_message = "the topics are others"
  }
  assert {
    condition     = aws_s3_bucket.releases.force_destroy == false
    error_message = "a destroy takes the releases along without being told to"
  }
}

run "with_a_key" {
  variables {
    kms = true
  }

  assert {
    condition = (
      one(one(one(aws_s3_bucket_server_side_encryption_configuration.releases).rule).apply_server_side_encryption_by_default).sse_algorithm == "aws:kms" &&
      one(one(one(aws_s3_bucket_server_side_encryption_configuration.releases).rule).apply_server_side_encryption_by_default).kms_master_key_id == one(aws_kms_key.releases).arn
    )
    error_message = "releases are not encrypted with the key"
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.releases).rule).bucket_key_enabled
    error_message = "each object costs a request to KMS"
  }
  assert {
    condition     = one(aws_kms_key.releases).enable_key_rotation && output.kms_key_arn == one(aws_kms_key.releases).arn
    error_message = "the key does not rotate, or nobody learns its name"
  }
}
