variable "site" {
  description = "The site, as `site` in its settings: promo-production. It names what is made."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,62}$", var.site))
    error_message = "The site is 1 to 63 of a-z 0-9 -, as in the settings."
  }
}

variable "bucket" {
  description = "The bucket of the releases: module.store.bucket."
  type        = string
}

variable "prefix" {
  description = "`prefix` of the settings: empty, or ends in a slash."
  type        = string
  default     = ""
}

variable "table_arn" {
  description = "The table's ARN: module.store.table_arn."
  type        = string
}

variable "kms_key_arn" {
  description = "The releases' key: module.store.kms_key_arn; null without one."
  type        = string
  default     = null
}

variable "topic_arns" {
  description = "Topics that the agents publish outcomes to: values(module.store.topics)."
  type        = list(string)
  default     = []
}

variable "ami" {
  description = "The image that Packer made."
  type        = string
}

variable "instance_type" {
  description = "Must fit the image's architecture."
  type        = string
  default     = "t3.small"
}

variable "user_data" {
  description = "The script of the first boot, as packer/boot/user-data.sh: it writes the settings and starts the site."
  type        = string
}

variable "policies" {
  description = "ARNs of more policies for the instances' role: what the user data, the CloudWatch agent (CloudWatchAgentServerPolicy) and the application need."
  type        = list(string)
  default     = []
}

variable "vpc_id" {
  description = "The network of the instances."
  type        = string
}

variable "subnets" {
  description = "Subnets of the instances, in two zones or more."
  type        = list(string)
}

variable "public_subnets" {
  description = "Subnets of the load balancer, in two zones or more."
  type        = list(string)
}

variable "route_tables" {
  description = "Route tables of the instances' subnets: they get gateway endpoints to S3 and DynamoDB, so that releases cross no NAT. Empty: there are some already."
  type        = list(string)
  default     = []
}

variable "certificate_arn" {
  description = "The certificate of the load balancer; null: HTTP only."
  type        = string
  default     = null
}

variable "security_groups" {
  description = "More security groups for the instances, such as the database's clients."
  type        = list(string)
  default     = []
}

variable "size" {
  description = "How many instances: at least, at most, and at the beginning."
  type        = object({ min = number, max = number, desired = number })
  default     = { min = 2, max = 6, desired = 2 }
}

variable "warm_up" {
  description = "Seconds that an instance may take until its agent runs, and be without a word of it until the release is served; then it is ended."
  type        = number
  default     = 600
}

variable "tags" {
  description = "Tags of everything that is made."
  type        = map(string)
  default     = {}
}
