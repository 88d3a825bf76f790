output "url" {
  description = "The load balancer; point var.host at its name. A browser is content with the certificate only under var.host."
  value       = module.fleet.url
}

output "config" {
  description = "config.yml of who pushes."
  value       = join("\n", slice(split("\n", local.settings), 0, 4))
}

output "push_policy_arn" {
  description = "The policy of who pushes."
  value       = module.fleet.push_policy_arn
}

output "developer_policy_arn" {
  description = "The policy of people who push, forget instances and run `push -init`."
  value       = module.fleet.developer_policy_arn
}
