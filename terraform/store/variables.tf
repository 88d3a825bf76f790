variable "bucket" {
  description = "The bucket's name, `bucket` in the settings. It is made."
  type        = string
}

variable "table" {
  description = "The table's name, `table` in the settings. It is made."
  type        = string
  default     = "s3-pull-deploy"
}

variable "topics" {
  description = "What the names of the two topics begin with."
  type        = string
  default     = "s3-pull-deploy"
}

variable "kms" {
  description = "Encrypt releases with a key of one's own: everybody who pushes then needs kms:GenerateDataKey and kms:Decrypt, instances kms:Decrypt."
  type        = bool
  default     = false
}

variable "force_destroy" {
  description = "Let `terraform destroy` delete a bucket that holds releases or old versions of what was deleted: with all of them. Apply it before the destroy."
  type        = bool
  default     = false
}

variable "s3_compatible" {
  description = "The servers are not Amazon's: leave out what they do not know (public access block, encryption and expiry settings, recovery)."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of everything that is made."
  type        = map(string)
  default     = {}
}
