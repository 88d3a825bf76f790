# Images of one site: Debian 12 and Amazon Linux 2023, each with nginx, PHP and the agent, and no settings. See README.md here.
#
#   make package
#   packer plugins install github.com/hashicorp/amazon      once, with Packer 1.7 or newer
#   packer build -only='*.debian' -var site=promo-production -var package_version=1.2.3 packer

locals {
  built = formatdate("YYYY-MM-DD-hhmm", timestamp())
  tags = {
    Name    = "${var.site} ${local.built}"
    site    = var.site
    package = var.package_version
    source  = "{{ .SourceAMIName }}"
  }
  agent_arch = var.architecture == "arm64" ? "aarch64" : "x86_64"
  deb        = "s3-pull-deploy_${var.package_version}_${var.architecture == "arm64" ? "arm64" : "amd64"}.deb"
  rpm        = "s3-pull-deploy-${var.package_version}-1.${local.agent_arch}.rpm"
  cloudwatch = "https://amazoncloudwatch-agent.s3.amazonaws.com/debian/${var.architecture == "arm64" ? "arm64" : "amd64"}/latest/amazon-cloudwatch-agent.deb"
}

source "amazon-ebs" "debian" {
  ami_name      = "${var.site}-debian-${local.built}"
  region        = var.region
  instance_type = var.instance_type
  subnet_id     = var.subnet_id
  ssh_username  = "admin"
  tags          = local.tags
  encrypt_boot  = true

  source_ami_filter {
    owners      = ["136693071363"] # Debian
    most_recent = true
    filters = {
      name                = "debian-12-${var.architecture == "arm64" ? "arm64" : "amd64"}-*"
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
  }
}

source "amazon-ebs" "al2023" {
  ami_name      = "${var.site}-al2023-${local.built}"
  region        = var.region
  instance_type = var.instance_type
  subnet_id     = var.subnet_id
  ssh_username  = "ec2-user"
  tags          = local.tags
  encrypt_boot  = true

  source_ami_filter {
    owners      = ["amazon"]
    most_recent = true
    filters = {
      name                = "al2023-ami-2023.*-kernel-*-${var.architecture}"
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
  }
}

build {
  sources = ["source.amazon-ebs.debian", "source.amazon-ebs.al2023"]

  provisioner "file" {
    source      = "${var.dist}/${source.name == "debian" ? local.deb : local.rpm}"
    destination = "/tmp/${source.name == "debian" ? local.deb : local.rpm}"
  }

  # Without a slash at its end the folder itself is uploaded, into one that must be there: /tmp/files.
  provisioner "file" {
    source      = "${path.root}/files"
    destination = "/tmp"
  }

  # The scripts that the system test runs too.
  provisioner "shell" {
    execute_command = "sudo env {{ .Vars }} sh '{{ .Path }}'"
    environment_vars = [
      "SITE=${var.site}",
      "SERVER_NAME=${var.server_name}",
      "PUBLIC=${var.public}",
      "PHP=${var.php}",
      "PHP_MODULES=${var.php_modules}",
      "PACKAGES=${var.packages}",
      "PACKAGE=/tmp/${source.name == "debian" ? local.deb : local.rpm}",
      "FILES=/tmp/files",
      "CLOUDWATCH_AGENT=${source.name == "debian" ? local.cloudwatch : "dnf"}",
    ]
    scripts = [
      "${path.root}/scripts/web.sh",
      "${path.root}/scripts/agent.sh",
      "${path.root}/scripts/logs.sh",
      "${path.root}/scripts/clean.sh",
    ]
  }
}
