variable "region" {
  description = "Where everything is made."
  type        = string
  default     = "eu-central-1"
}

variable "site" {
  description = "The site, as in its settings and in the image."
  type        = string
  default     = "wordpress"
  validation {
    condition     = can(regex("^[a-z](-?[a-z0-9])*$", var.site)) && length(var.site) <= 50
    error_message = "The site names a database too: at most 50 of a-z 0-9 -, a letter first, no two hyphens together and none at the end."
  }
}

variable "bucket" {
  description = "The bucket of the releases; its name must be free in all of Amazon."
  type        = string
}

variable "host" {
  description = "The site's host name."
  type        = string
}

variable "certificate_arn" {
  description = "The certificate of that name, from ACM in this region; null: HTTP only."
  type        = string
  default     = null
}

variable "ami" {
  description = "The Debian image that Packer made for this site, with php_modules='mysql gd intl' and packages='awscli nfs-common'."
  type        = string
}

variable "force_destroy" {
  description = "Let `terraform destroy` delete the bucket with all releases and their old versions, and the secrets at once, whose names are otherwise taken for 30 days. Apply it before the destroy."
  type        = bool
  default     = false
}
