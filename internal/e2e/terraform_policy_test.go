package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTerraformsPoliciesAreThoseOfPush plans terraform/fleet without any AWS, and compares its policies with what `push -policy` prints
// for the same settings: the statements are the same, but for the group's name, which Terraform knows.
// The longest site name makes names that AWS takes.
func TestTerraformsPoliciesAreThoseOfPush(t *testing.T) {
	plugins := terraform(t)
	w := newWorld(t)
	for _, c := range []struct{ name, site, region, partition, prefix, key, topics string }{
		{"with everything", "promo-production", "eu-central-1", "aws", "odd*$?/", "arn:aws:kms:eu-central-1:123456789012:key/1234abcd", "arn:aws:sns:eu-central-1:123456789012:"},
		{"bare, in China, with the longest name", strings.Repeat("promo-x-", 8)[:63], "cn-north-1", "aws-cn", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &site{t: t, world: w, dir: t.TempDir(), name: c.site}
			module := filepath.Join(modules(t), "fleet")

			settings := fmt.Sprintf("site: %s\nbucket: deploys\nprefix: %q\nregion: %s\nkms_key_id: %q\nlifecycle_hook: launch\n", s.name, c.prefix, c.region, c.key)
			key, topics := "null", "[]"
			if c.key != "" {
				key = fmt.Sprintf("%q", c.key)
			}
			if c.topics != "" {
				settings += fmt.Sprintf("notify: {sns_success: '%sok', sns_error: '%[1]serror'}\n", c.topics)
				topics = fmt.Sprintf("[%q, %q]", c.topics+"ok", c.topics+"error")
			}
			s.write("push.yml", settings)
			var asserts strings.Builder
			for role, resource := range map[string]string{
				"instance": "aws_iam_role_policy.agent", "ci": "aws_iam_policy.push", "developer": "aws_iam_policy.developer",
			} {
				r := s.push("-policy=" + role)
				if r.code != 0 {
					t.Fatal(r)
				}
				policy := strings.ReplaceAll(r.stdout, "autoScalingGroupName/*", "autoScalingGroupName/"+s.name)
				check(t, os.WriteFile(filepath.Join(module, role+".json"), []byte(policy), 0o644))
				fmt.Fprintf(&asserts, `
  assert {
    condition     = jsondecode(%[1]s.policy) == jsondecode(file("%[2]s.json"))
    error_message = "%[1]s is not what push -policy=%[2]s prints: ${%[1]s.policy} instead of ${jsonencode(jsondecode(file("%[2]s.json")))}"
  }`, resource, role)
			}
			check(t, os.WriteFile(filepath.Join(module, "policies.tftest.hcl"), fmt.Appendf(nil, `
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = %q }
  }
  mock_data "aws_region" {
    defaults = { name = %q }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "*" }
  }
  mock_data "aws_vpc" {
    defaults = { cidr_block = "10.0.0.0/16" }
  }
}

variables {
  site           = %q
  bucket         = "deploys"
  prefix         = %q
  table_arn      = "arn:%[1]s:dynamodb:%[2]s:*:table/s3-pull-deploy"
  kms_key_arn    = %[5]s
  topic_arns     = %[6]s
  ami            = "ami-1"
  user_data      = ""
  vpc_id         = "vpc-1"
  subnets        = ["subnet-1"]
  public_subnets = ["subnet-2"]
}

run "policies" {
  command = plan
%[7]s
}
`, c.partition, c.region, s.name, c.prefix, key, topics, asserts.String()), 0o644))

			terraformIn(t, module, plugins)("test", "-no-color")
		})
	}
}
