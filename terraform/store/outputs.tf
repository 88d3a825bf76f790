output "bucket" {
  description = "`bucket` of the settings."
  value       = aws_s3_bucket.releases.id
}

output "table" {
  description = "`table` of the settings."
  value       = aws_dynamodb_table.fleets.name
}

output "table_arn" {
  description = "For policies."
  value       = aws_dynamodb_table.fleets.arn
}

output "kms_key_arn" {
  description = "`kms_key_id` of the settings; null without a key."
  value       = var.kms ? aws_kms_key.releases[0].arn : null
}

output "topics" {
  description = "`notify.sns_success` and `notify.sns_error` of the settings."
  value       = { for k, t in aws_sns_topic.outcome : k => t.arn }
}
