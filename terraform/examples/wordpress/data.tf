# What outlives releases: the database, the uploads, WordPress's secret.

resource "aws_db_subnet_group" "site" {
  name       = var.site
  subnet_ids = aws_subnet.public[*].id
}

resource "aws_db_instance" "site" {
  identifier                  = var.site
  engine                      = "mariadb"
  instance_class              = "db.t4g.micro"
  allocated_storage           = 20
  storage_encrypted           = true
  db_name                     = "wordpress"
  username                    = "wordpress"
  manage_master_user_password = true
  db_subnet_group_name        = aws_db_subnet_group.site.name
  vpc_security_group_ids      = [aws_security_group.data.id]
  backup_retention_period     = 7
  final_snapshot_identifier   = "${var.site}-last"
}

resource "aws_efs_file_system" "uploads" {
  encrypted = true
  tags      = { Name = "${var.site}-uploads" }
}

resource "aws_efs_mount_target" "uploads" {
  count           = 2
  file_system_id  = aws_efs_file_system.uploads.id
  subnet_id       = aws_subnet.public[count.index].id
  security_groups = [aws_security_group.data.id]
}

# The same on every instance, or logins break. The value is yours, and not in Terraform's state:
#   aws secretsmanager put-secret-value --secret-id SITE-wordpress --secret-string "$(openssl rand -hex 32)"
resource "aws_secretsmanager_secret" "wordpress" {
  name = "${var.site}-wordpress"
}
