# The statements that `push -policy=instance`, `ci` and `developer` print, one by one; a test compares them. docs/security.md says what
# each is for.

locals {
  aws        = "arn:${data.aws_partition.here.partition}"
  region     = data.aws_region.here.name
  bucket_arn = "${local.aws}:s3:::${var.bucket}"
  # What IAM would take for wildcards is written out.
  key    = replace(replace(replace("${var.prefix}${var.site}", "$", "$${$}"), "*", "$${*}"), "?", "$${?}")
  site   = "${local.bucket_arn}/${local.key}/"
  scope  = "${var.bucket}/${local.key}"
  member = "${local.scope}#m??"

  read = [
    {
      Sid      = "ReadReleases"
      Effect   = "Allow"
      Action   = ["s3:GetObject"]
      Resource = ["${local.site}*"]
    },
    {
      Sid       = "ListReleases"
      Effect    = "Allow"
      Action    = ["s3:ListBucket"]
      Resource  = [local.bucket_arn]
      Condition = { StringLikeIfExists = { "s3:prefix" = ["${local.key}/*"] } }
    },
  ]

  keys = { for role, actions in { instance = ["kms:Decrypt"], ci = ["kms:GenerateDataKey", "kms:Decrypt"] } : role => [
    for key in var.kms_key_arn == null ? [] : [var.kms_key_arn] : {
      Sid      = "UseKey"
      Effect   = "Allow"
      Action   = actions
      Resource = [key]
      Condition = { StringLike = {
        "kms:ViaService"                   = ["s3.${local.region}.amazonaws.com*"]
        "kms:EncryptionContext:aws:s3:arn" = [local.bucket_arn, "${local.site}*"]
      } }
    }
  ] }

  # Items of these partitions: of the head, the notes and the log; of the members' rows.
  items = { for name, partitions in { all = [local.scope, local.member], scope = [local.scope], member = [local.member] } : name => {
    "ForAllValues:StringLike" = { "dynamodb:LeadingKeys" = partitions }
  } }

  instance = concat(local.read, local.keys.instance,
    [
      {
        Sid       = "Fleet"
        Effect    = "Allow"
        Action    = ["dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem"]
        Resource  = [var.table_arn]
        Condition = local.items.all
      },
      {
        Sid       = "LeaveFleet"
        Effect    = "Allow"
        Action    = ["dynamodb:DeleteItem"]
        Resource  = [var.table_arn]
        Condition = local.items.member
      },
    ],
    [for topics in length(var.topic_arns) == 0 ? [] : [var.topic_arns] : {
      Sid      = "Notify"
      Effect   = "Allow"
      Action   = ["sns:Publish"]
      Resource = topics
    }],
    [{
      Sid      = "CompleteLaunch"
      Effect   = "Allow"
      Action   = ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"]
      Resource = ["${local.aws}:autoscaling:${local.region}:${data.aws_caller_identity.me.account_id}:autoScalingGroup:*:autoScalingGroupName/${var.site}"]
    }],
  )

  ci = concat(local.read,
    [
      {
        Sid       = "WriteOnce"
        Effect    = "Allow"
        Action    = ["s3:PutObject"]
        Resource  = ["${local.site}*"]
        Condition = { Null = { "s3:if-none-match" = ["false"] } }
      },
      {
        Sid       = "ReplaceWhatWasRead"
        Effect    = "Allow"
        Action    = ["s3:PutObject"]
        Resource  = ["${local.site}latest-deploy", "${local.site}m/*"]
        Condition = { Null = { "s3:if-match" = ["false"] } }
      },
      {
        Sid      = "CleanUp"
        Effect   = "Allow"
        Action   = ["s3:DeleteObject"]
        Resource = ["${local.site}*/*"]
      },
    ],
    local.keys.ci,
    [
      {
        Sid       = "ReadFleet"
        Effect    = "Allow"
        Action    = ["dynamodb:GetItem", "dynamodb:Query"]
        Resource  = [var.table_arn]
        Condition = local.items.all
      },
      {
        Sid       = "AskFleet"
        Effect    = "Allow"
        Action    = ["dynamodb:UpdateItem"]
        Resource  = [var.table_arn]
        Condition = local.items.scope
      },
    ],
  )

  developer = concat(local.ci, [
    {
      Sid       = "Forget"
      Effect    = "Allow"
      Action    = ["dynamodb:DeleteItem"]
      Resource  = [var.table_arn]
      Condition = local.items.member
    },
    {
      Sid    = "InitBucket"
      Effect = "Allow"
      Action = [
        "s3:CreateBucket", "s3:GetBucketPublicAccessBlock", "s3:PutBucketPublicAccessBlock", "s3:GetEncryptionConfiguration",
        "s3:PutEncryptionConfiguration", "s3:GetBucketVersioning", "s3:PutBucketVersioning", "s3:GetLifecycleConfiguration",
        "s3:PutLifecycleConfiguration",
      ]
      Resource = [local.bucket_arn]
    },
    {
      Sid    = "InitTable"
      Effect = "Allow"
      Action = [
        "dynamodb:CreateTable", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive", "dynamodb:UpdateTimeToLive",
        "dynamodb:DescribeContinuousBackups", "dynamodb:UpdateContinuousBackups",
      ]
      Resource = [var.table_arn]
    },
  ])
}
