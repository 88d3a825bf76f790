# The instances' role: reading releases, meeting the fleet, saying outcomes. No write to S3.

data "aws_caller_identity" "me" {}

locals {
  bucket_arn = "arn:aws:s3:::${var.bucket}"
  scope      = "${var.bucket}/${var.prefix}${var.site}"
  group_arn  = "arn:aws:autoscaling:${data.aws_region.here.name}:${data.aws_caller_identity.me.account_id}:autoScalingGroup:*:autoScalingGroupName/${var.site}"
}

resource "aws_iam_role" "instance" {
  name = "${var.site}-instance"
  tags = var.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_instance_profile" "instance" {
  name = "${var.site}-instance"
  role = aws_iam_role.instance.name
}

resource "aws_iam_role_policy_attachment" "more" {
  count      = length(var.policies)
  role       = aws_iam_role.instance.name
  policy_arn = var.policies[count.index]
}

resource "aws_iam_role_policy" "agent" {
  name   = "s3-pull-deploy-agent"
  role   = aws_iam_role.instance.id
  policy = data.aws_iam_policy_document.agent.json
}

data "aws_iam_policy_document" "agent" {
  statement {
    sid       = "ReadReleases"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/${var.prefix}${var.site}/*"]
  }
  statement {
    sid       = "ListReleases"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]
    condition {
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = ["${var.prefix}${var.site}/*"]
    }
  }
  statement {
    sid       = "MeetTheFleet"
    actions   = ["dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem", "dynamodb:DeleteItem"]
    resources = [var.table_arn]
    condition {
      test     = "ForAllValues:StringLike"
      variable = "dynamodb:LeadingKeys"
      values   = [local.scope, "${local.scope}#m*"]
    }
  }
  statement {
    sid       = "EnterService"
    actions   = ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"]
    resources = [local.group_arn]
  }
  dynamic "statement" {
    for_each = var.kms_key_arn == null ? [] : [var.kms_key_arn]
    content {
      sid       = "DecryptReleases"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]
    }
  }
  dynamic "statement" {
    for_each = length(var.topic_arns) > 0 ? [1] : []
    content {
      sid       = "SayOutcomes"
      actions   = ["sns:Publish"]
      resources = var.topic_arns
    }
  }
}

# What CI may do: attach it to the role that GitHub or GitLab assume.
resource "aws_iam_policy" "push" {
  name   = "${var.site}-push"
  tags   = var.tags
  policy = data.aws_iam_policy_document.push.json
}

data "aws_iam_policy_document" "push" {
  statement {
    sid       = "WriteReleases"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    resources = ["${local.bucket_arn}/${var.prefix}${var.site}/*"]
  }
  statement {
    sid       = "ListReleases"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]
    condition {
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = ["${var.prefix}${var.site}/*"]
    }
  }
  statement {
    sid       = "SeeTheFleet"
    actions   = ["dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem", "dynamodb:DeleteItem"]
    resources = [var.table_arn]
    condition {
      test     = "ForAllValues:StringLike"
      variable = "dynamodb:LeadingKeys"
      values   = [local.scope, "${local.scope}#m*"]
    }
  }
  dynamic "statement" {
    for_each = var.kms_key_arn == null ? [] : [var.kms_key_arn]
    content {
      sid       = "EncryptReleases"
      actions   = ["kms:GenerateDataKey", "kms:Decrypt"]
      resources = [statement.value]
    }
  }
}
