# What outlives releases: the database, the uploads, WordPress's secret.

resource "aws_db_subnet_group" "site" {
  name       = var.site
  subnet_ids = aws_subnet.public[*].id
}

resource "aws_db_instance" "site" {
  identifier                = var.site
  engine                    = "mariadb"
  instance_class            = "db.t4g.micro"
  allocated_storage         = 20
  storage_encrypted         = true
  db_name                   = "wordpress"
  username                  = "wordpress"
  password                  = data.aws_secretsmanager_secret_version.database.secret_string
  db_subnet_group_name      = aws_db_subnet_group.site.name
  vpc_security_group_ids    = [aws_security_group.data.id]
  backup_retention_period   = 7
  final_snapshot_identifier = "${var.site}-last"
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

# The values are yours:
#   aws secretsmanager put-secret-value --secret-id SITE-wordpress --secret-string "$(openssl rand -hex 32)"
#   aws secretsmanager put-secret-value --secret-id SITE-database --secret-string "$(openssl rand -hex 20)"
# WordPress's is the same on every instance, or logins break. The database's is its password. RDS could make and keep that one itself
# (manage_master_user_password), but changes it every seven days, while instances read it once, at their first boot.
resource "aws_secretsmanager_secret" "site" {
  for_each = toset(["wordpress", "database"])
  name     = "${var.site}-${each.key}"

  recovery_window_in_days = var.force_destroy ? 0 : 30
}

# This puts the password into Terraform's state; WordPress's secret is not there.
data "aws_secretsmanager_secret_version" "database" {
  secret_id = aws_secretsmanager_secret.site["database"].id
  lifecycle {
    postcondition {
      condition     = can(regex("^[A-Za-z0-9]{16,41}$", self.secret_string))
      error_message = "The database's password is 16 to 41 letters and digits: RDS takes no more, and in PHP's pool other characters have meanings."
    }
  }
}
