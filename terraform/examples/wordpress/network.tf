# Two zones, public subnets: instances have addresses of their own and need no NAT; only the load balancer may come in.

data "aws_availability_zones" "all" {
  state = "available"
}

resource "aws_vpc" "site" {
  cidr_block           = "10.20.0.0/16"
  enable_dns_hostnames = true
  tags                 = { Name = var.site }
}

resource "aws_internet_gateway" "site" {
  vpc_id = aws_vpc.site.id
}

resource "aws_subnet" "public" {
  count                   = 2
  vpc_id                  = aws_vpc.site.id
  cidr_block              = cidrsubnet(aws_vpc.site.cidr_block, 8, count.index)
  availability_zone       = data.aws_availability_zones.all.names[count.index]
  map_public_ip_on_launch = true
  tags                    = { Name = "${var.site}-${count.index}" }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.site.id
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.site.id
  }
}

resource "aws_route_table_association" "public" {
  count          = 2
  subnet_id      = aws_subnet.public[count.index].id
  route_table_id = aws_route_table.public.id
}

# Database and file system, for the instances only.
resource "aws_security_group" "data" {
  name   = "${var.site}-data"
  vpc_id = aws_vpc.site.id
  dynamic "ingress" {
    for_each = [3306, 2049]
    content {
      from_port       = ingress.value
      to_port         = ingress.value
      protocol        = "tcp"
      security_groups = [module.fleet.security_group]
    }
  }
}
