# WordPress from an empty account: network, database, shared uploads, releases, fleet. docs/getting-started-aws.md goes through it.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.40"
    }
  }
}

provider "aws" {
  region = var.region
}

module "store" {
  source = "../../store"
  bucket = var.bucket
  topics = var.site

  force_destroy = var.force_destroy
}

module "fleet" {
  source          = "../../fleet"
  site            = var.site
  bucket          = module.store.bucket
  table_arn       = module.store.table_arn
  kms_key_arn     = module.store.kms_key_arn
  topic_arns      = values(module.store.topics)
  ami             = var.ami
  vpc_id          = aws_vpc.site.id
  subnets         = aws_subnet.public[*].id
  public_subnets  = aws_subnet.public[*].id
  route_tables    = [aws_route_table.public.id]
  certificate_arn = var.certificate_arn
  policies        = [aws_iam_policy.site.arn, "arn:${data.aws_partition.here.partition}:iam::aws:policy/CloudWatchAgentServerPolicy"]
  user_data       = local.user_data
}

data "aws_partition" "here" {}

locals {
  # The settings of the instances. Those of the developer, config.yml, have the same first four lines.
  settings = <<-END
    site: ${var.site}
    bucket: ${module.store.bucket}
    region: ${var.region}
    layout: packed
    root: /var/www/${var.site}
    web_user: www-data
    shared: {wp-content/uploads: /srv/uploads}
    opcache: {url: "http://127.0.0.1:8901/_deploy/opcache"}
    health_check: {url: "http://127.0.0.1/health.php", preview: "http://127.0.0.1:8902/health.php", host: "${var.host}", timeout: 20s}
    lifecycle_hook: launch
    notify: {sns_success: "${module.store.topics["success"]}", sns_error: "${module.store.topics["error"]}"}
  END

  user_data = templatefile("${path.module}/user-data.sh", {
    region   = var.region
    settings = local.settings
    uploads  = aws_efs_mount_target.uploads[0].dns_name
    url      = "${var.certificate_arn == null ? "http" : "https"}://${var.host}"
    database = aws_db_instance.site.address
    password = aws_secretsmanager_secret.site["database"].arn
    version  = data.aws_secretsmanager_secret_version.database.version_id
    secret   = aws_secretsmanager_secret.site["wordpress"].arn
  })
}

# What the user data reads besides.
resource "aws_iam_policy" "site" {
  name = "${var.site}-site"
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = "secretsmanager:GetSecretValue"
      Resource = values(aws_secretsmanager_secret.site)[*].arn
    }]
  })
}
