output "url" {
  description = "Where the site answers; point its name there."
  value       = "${var.certificate_arn == null ? "http" : "https"}://${aws_lb.public.dns_name}"
}

output "role" {
  description = "The name of the instances' role."
  value       = aws_iam_role.instance.name
}

output "security_group" {
  description = "The instances' security group, for the database and the file system to let in."
  value       = aws_security_group.instance.id
}

output "push_policy_arn" {
  description = "The policy of who pushes: attach it to CI's role."
  value       = aws_iam_policy.push.arn
}

output "developer_policy_arn" {
  description = "The policy of people who push, forget instances and run `push -init`."
  value       = aws_iam_policy.developer.arn
}
