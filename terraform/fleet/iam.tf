# Who may do what: the policies of policies.tf, on the instances' role and for the roles of CI and of people.

data "aws_caller_identity" "me" {}
data "aws_partition" "here" {}

resource "aws_iam_role" "instance" {
  name = "${local.name}-instance"
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
  name = "${local.name}-instance"
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
  policy = jsonencode({ Version = "2012-10-17", Statement = local.instance })
}

# What CI may do: attach it to the role that GitHub or GitLab assume.
resource "aws_iam_policy" "push" {
  name   = "${local.name}-push"
  tags   = var.tags
  policy = jsonencode({ Version = "2012-10-17", Statement = local.ci })
}

# What people may do besides: drop the rows of instances that are gone, and let `push -init` look at bucket and table.
resource "aws_iam_policy" "developer" {
  name   = "${local.name}-developer"
  tags   = var.tags
  policy = jsonencode({ Version = "2012-10-17", Statement = local.developer })
}
