# The example, applied to nothing: `terraform init && terraform test -test-directory=mocked`.
# Terraform 1.7 or newer; where it would look by itself, 1.6 would stumble over it at every init.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }
  mock_data "aws_secretsmanager_secret_version" {
    defaults = { secret_string = "0123456789abcdef0123456789abcdef" }
  }
  mock_data "aws_vpc" {
    defaults = { cidr_block = "10.20.0.0/16" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { id = "deploys" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/wordpress-site" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/wordpress-instance" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-1234abcd" }
  }
  mock_resource "aws_lb" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/wordpress/1" }
  }
  mock_resource "aws_lb_target_group" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/wordpress/1" }
  }
  mock_resource "aws_lb_listener" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener/app/wordpress/1/1" }
  }
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:eu-central-1:123456789012:wordpress" }
  }
}

variables {
  bucket = "deploys"
  host   = "promo.example.com"
  ami    = "ami-1"
}

run "example" {
  assert {
    condition     = yamldecode(output.config) == { site = "wordpress", bucket = "deploys", region = "eu-central-1", layout = "packed" }
    error_message = "the settings of who pushes are others: ${output.config}"
  }
  assert {
    condition     = aws_db_instance.site.storage_encrypted && aws_efs_file_system.uploads.encrypted
    error_message = "the database or the uploads are not encrypted"
  }
}
