variable "site" {
  type        = string
  description = "The site that instances of the image serve, as `site` in its settings: promo-production."
}

variable "package_version" {
  type        = string
  description = "The version of the package in dist, as `make package` named it."
}

variable "dist" {
  type        = string
  description = "The folder with the package."
  default     = "dist"
}

variable "region" {
  type        = string
  description = "Where the image is built; copy it to other regions with ami_regions."
  default     = "eu-central-1"
}

variable "architecture" {
  type        = string
  description = "x86_64, or arm64 for Graviton; instance_type must fit."
  default     = "x86_64"
}

variable "instance_type" {
  type        = string
  description = "What builds the image; t4g.small for arm64."
  default     = "t3.small"
}

variable "subnet_id" {
  type        = string
  description = "A subnet with a way out, for packages; empty: the default VPC's."
  default     = ""
}

variable "server_name" {
  type        = string
  description = "The host names of the site, separated by blanks, as nginx wants them; _ is any."
  default     = "_"
}

variable "public" {
  type        = string
  description = "The folder of a release that is the document root, such as /public; empty: the release itself."
  default     = ""
}

variable "php" {
  type        = string
  description = "PHP's version on Amazon Linux 2023; Debian has one."
  default     = "8.3"
}

variable "php_modules" {
  type        = string
  description = "PHP extensions, separated by blanks, by the names after php8.x- in the packages: `mysql gd intl` on Debian, `mysqlnd gd intl` on Amazon Linux. opcache is always there."
  default     = ""
}

variable "packages" {
  type        = string
  description = "More packages, separated by blanks: awscli for the script at boot (Amazon Linux has it), nfs-common or amazon-efs-utils for EFS."
  default     = ""
}
