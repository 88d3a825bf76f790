# What all sites can share: the bucket of the releases, the table that fleets meet in, two topics, and a key where one is wanted.
# The same as `push -init` makes; run that afterwards and it reports only "ok".

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.40"
    }
  }
}

resource "aws_s3_bucket" "releases" {
  bucket        = var.bucket
  force_destroy = var.force_destroy
  tags          = var.tags
}

resource "aws_s3_bucket_public_access_block" "releases" {
  count                   = var.s3_compatible ? 0 : 1
  bucket                  = aws_s3_bucket.releases.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "releases" {
  count  = var.s3_compatible ? 0 : 1
  bucket = aws_s3_bucket.releases.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms ? "aws:kms" : "AES256"
      kms_master_key_id = var.kms ? aws_kms_key.releases[0].arn : null
    }
    bucket_key_enabled = var.kms
  }
}

resource "aws_s3_bucket_versioning" "releases" {
  bucket = aws_s3_bucket.releases.id
  versioning_configuration {
    status = "Enabled"
  }
}

# Never current objects: those are releases. Only what was overwritten or deleted, and uploads that broke off.
resource "aws_s3_bucket_lifecycle_configuration" "releases" {
  count  = var.s3_compatible ? 0 : 1
  bucket = aws_s3_bucket.releases.id
  rule {
    id     = "s3-pull-deploy"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = 30
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
  depends_on = [aws_s3_bucket_versioning.releases]
}

resource "aws_dynamodb_table" "fleets" {
  name         = var.table
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "pk"
  range_key    = "sk"
  tags         = var.tags

  attribute {
    name = "pk"
    type = "S"
  }
  attribute {
    name = "sk"
    type = "S"
  }
  ttl {
    attribute_name = "ttl"
    enabled        = true
  }
  point_in_time_recovery {
    enabled = !var.s3_compatible
  }
}

# Outcomes: `notify.sns_success` and `notify.sns_error` of the settings.
resource "aws_sns_topic" "outcome" {
  for_each          = toset(["success", "error"])
  name              = "${var.topics}-${each.key}"
  kms_master_key_id = var.s3_compatible ? null : "alias/aws/sns"
  tags              = var.tags
}

resource "aws_kms_key" "releases" {
  count               = var.kms ? 1 : 0
  description         = "releases in ${var.bucket}"
  enable_key_rotation = true
  tags                = var.tags
}
