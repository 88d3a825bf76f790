#!/bin/sh
# User data of an instance: the settings of the site come at its first boot, from the Parameter Store or from S3; there is nothing
# secret in the image. Needs the AWS command line and, in the instance's role, ssm:GetParameter or s3:GetObject for these names.
set -eu
# shellcheck source=/dev/null
. /etc/default/s3-pull-deploy
region=eu-central-1

# The settings: `root` and `web_user` as in the image (/etc/default/s3-pull-deploy), the rest as in config.sample.yml. They
# may hold secrets, so only root reads them; for an agent without root: chgrp s3-pull-deploy and chmod 640.
umask 077
settings=/etc/s3-pull-deploy/$SITE.yml
aws --region "$region" ssm get-parameter --name "/s3-pull-deploy/$SITE/settings" --with-decryption \
	--query Parameter.Value --output text >"$settings.new"
# or: aws --region "$region" s3 cp "s3://example-config/$SITE.yml" "$settings.new"
mv "$settings.new" "$settings"
umask 022

# Uploads that all instances share: EFS over NFS 4.1. With amazon-efs-utils: mount -t efs -o tls fs-0123456789abcdef0:/ /srv/uploads
#   mkdir -p /srv/uploads
#   echo "fs-0123456789abcdef0.efs.$region.amazonaws.com:/ /srv/uploads nfs4 nfsvers=4.1,hard,timeo=600,_netdev 0 0" >>/etc/fstab
#   mount /srv/uploads

# An address that stays, for a fleet of one: an Elastic IP. The role needs ec2:AssociateAddress.
#   token=$(curl -fsS -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" http://169.254.169.254/latest/api/token)
#   id=$(curl -fsS -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/instance-id)
#   aws --region "$region" ec2 associate-address --instance-id "$id" --allocation-id eipalloc-0123456789abcdef0

s3-pull-deploy-start
