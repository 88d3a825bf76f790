# A fleet, planned without AWS: `terraform init && terraform test -test-directory=mocked`.
# Terraform 1.7 or newer; where it would look by itself, 1.6 would stumble over it at every init.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_vpc" {
    defaults = { cidr_block = "10.0.0.0/16" }
  }
}

variables {
  site           = "promo"
  bucket         = "deploys"
  table_arn      = "arn:aws:dynamodb:eu-central-1:123456789012:table/s3-pull-deploy"
  ami            = "ami-1"
  user_data      = "#!/bin/sh"
  vpc_id         = "vpc-1"
  subnets        = ["subnet-1"]
  public_subnets = ["subnet-2"]
}

run "as_it_comes" {
  command = plan

  assert {
    condition = { for h in aws_autoscaling_group.fleet.initial_lifecycle_hook : h.name => [h.lifecycle_transition, h.default_result, h.heartbeat_timeout] } == {
      launch    = ["autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON", 600]
      terminate = ["autoscaling:EC2_INSTANCE_TERMINATING", "CONTINUE", 60]
    }
    error_message = "an instance whose agent never says that it serves is shown to visitors, or one that goes has no time to leave"
  }
  assert {
    condition = (
      one(aws_autoscaling_group.fleet.instance_refresh).strategy == "Rolling" &&
      one(one(aws_autoscaling_group.fleet.instance_refresh).preferences).min_healthy_percentage == 90 &&
      one(one(aws_autoscaling_group.fleet.instance_refresh).preferences).max_healthy_percentage == 120
    )
    error_message = "a new image does not replace the instances, or too many at a time"
  }
  assert {
    condition     = aws_autoscaling_group.fleet.health_check_type == "ELB"
    error_message = "an instance that answers 503 stays"
  }
  assert {
    condition = alltrue([for c in aws_lb_target_group.fleet.health_check :
      c.path == "/_deploy/health" && c.matcher == "200" && c.unhealthy_threshold == 3
    ]) && length(aws_lb_target_group.fleet.health_check) == 1
    error_message = "the load balancer does not ask the agent"
  }
  assert {
    condition = (
      flatten([for c in aws_lb_listener_rule.private.condition : [for p in c.path_pattern : tolist(p.values)]]) == ["/_deploy/*"] &&
      one(one(aws_lb_listener_rule.private.action).fixed_response).status_code == "404"
    )
    error_message = "visitors see the agent's pages"
  }
  assert {
    condition = (
      one(aws_launch_template.instance.metadata_options).http_tokens == "required" &&
      one(aws_launch_template.instance.metadata_options).http_put_response_hop_limit == 1
    )
    error_message = "what runs on an instance reaches its role by version 1 of the metadata service, or from a container"
  }
  assert {
    condition     = length(aws_vpc_endpoint.gateway) == 0
    error_message = "endpoints are made for no route table"
  }
  assert {
    condition     = length(aws_lb_listener.https) == 0 && one(aws_lb_listener.http.default_action).type == "forward"
    error_message = "without a certificate nobody is served"
  }
}

run "with_endpoints_and_a_certificate" {
  command = plan
  variables {
    route_tables    = ["rtb-1", "rtb-2"]
    certificate_arn = "arn:aws:acm:eu-central-1:123456789012:certificate/1234abcd"
    warm_up         = 900
  }

  assert {
    condition = { for k, e in aws_vpc_endpoint.gateway : k => [e.service_name, e.vpc_endpoint_type, e.vpc_id] } == {
      s3       = ["com.amazonaws.eu-central-1.s3", "Gateway", "vpc-1"]
      dynamodb = ["com.amazonaws.eu-central-1.dynamodb", "Gateway", "vpc-1"]
    }
    error_message = "releases cross a NAT"
  }
  assert {
    condition     = alltrue([for e in aws_vpc_endpoint.gateway : e.route_table_ids == toset(["rtb-1", "rtb-2"])])
    error_message = "a route table has no endpoint"
  }
  assert {
    condition     = one(aws_lb_listener.http.default_action).type == "redirect" && one(one(aws_lb_listener.https).default_action).type == "forward"
    error_message = "visitors are not brought to HTTPS"
  }
  assert {
    condition = (
      aws_autoscaling_group.fleet.health_check_grace_period == 900 &&
      one([for h in aws_autoscaling_group.fleet.initial_lifecycle_hook : h.heartbeat_timeout if h.name == "launch"]) == 900
    )
    error_message = "the time to warm up is another"
  }
}
