# The fleet of one site: an Auto Scaling Group behind a load balancer that asks the agents whether an instance is on the fleet's release.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.40"
    }
  }
}

data "aws_region" "here" {}

# Names of load balancers end at 32 characters and not with a hyphen, those of roles at 64. A site whose name is too long, with what
# follows it, is called by its beginning and a digest, so that two sites never have the same name.
locals {
  digest = "${trimsuffix(substr(var.site, 0, 23), "-")}-${substr(sha256(var.site), 0, 8)}"
  short  = length(var.site) > 32 || endswith(var.site, "-") ? local.digest : var.site
  name   = length(var.site) > 50 ? local.digest : var.site
}

resource "aws_launch_template" "instance" {
  name                   = var.site
  image_id               = var.ami
  instance_type          = var.instance_type
  user_data              = base64encode(var.user_data)
  update_default_version = true
  vpc_security_group_ids = concat([aws_security_group.instance.id], var.security_groups)
  tags                   = var.tags

  iam_instance_profile {
    arn = aws_iam_instance_profile.instance.arn
  }

  # One hop: what runs behind a proxy or in a container does not reach the role.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, { Name = var.site })
  }
}

resource "aws_autoscaling_group" "fleet" {
  name                      = var.site
  min_size                  = var.size.min
  max_size                  = var.size.max
  desired_capacity          = var.size.desired
  vpc_zone_identifier       = var.subnets
  target_group_arns         = [aws_lb_target_group.fleet.arn]
  health_check_type         = "ELB"
  health_check_grace_period = var.warm_up
  default_instance_warmup   = 60

  launch_template {
    id      = aws_launch_template.instance.id
    version = aws_launch_template.instance.latest_version
  }

  # An instance enters the load balancer when its agent says that the site serves (`lifecycle_hook: launch` in the settings); the agent
  # asks for more time while it works, for an hour at most. One that does not get there is never shown to visitors: it is ended and
  # another is tried, at AWS's own pace where that goes on.
  initial_lifecycle_hook {
    name                 = "launch"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    heartbeat_timeout    = var.warm_up
    default_result       = "ABANDON"
  }

  # A moment for requests that run, and for the agent to take its leave.
  initial_lifecycle_hook {
    name                 = "terminate"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = 60
    default_result       = "CONTINUE"
  }

  # A new image replaces the instances, some at a time. Releases need none of this.
  instance_refresh {
    strategy = "Rolling"
    preferences {
      min_healthy_percentage = 90
      max_healthy_percentage = 120
    }
  }

  dynamic "tag" {
    for_each = merge(var.tags, { Name = var.site })
    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    ignore_changes = [desired_capacity]
  }
}

resource "aws_vpc_endpoint" "gateway" {
  for_each          = length(var.route_tables) > 0 ? toset(["s3", "dynamodb"]) : toset([])
  vpc_id            = var.vpc_id
  service_name      = "com.amazonaws.${data.aws_region.here.name}.${each.key}"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = var.route_tables
  tags              = merge(var.tags, { Name = "${var.site}-${each.key}" })
}
