#!/bin/sh
# Sends the agents' journal and the web server's logs to CloudWatch. The CloudWatch agent reads files, so rsyslog copies the
# journal's lines of the agents into one. Runs as root while an image is baked.
#
#   FILES              the folder with the configuration files of this repository, packer/files
#   CLOUDWATCH_AGENT   where to get the CloudWatch agent: a URL of its .deb, or "dnf"; empty: it is not installed
set -eu
: "${FILES:?}" "${CLOUDWATCH_AGENT:=}"
# shellcheck source=/dev/null
. /etc/default/s3-pull-deploy

command -v rsyslogd >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends rsyslog logrotate
install -m 644 "$FILES/rsyslog.conf" /etc/rsyslog.d/30-s3-pull-deploy.conf
install -m 644 "$FILES/logrotate.conf" /etc/logrotate.d/s3-pull-deploy

conf=/opt/aws/amazon-cloudwatch-agent/etc/amazon-cloudwatch-agent.d
mkdir -p "$conf"
sed "s#SITE#$SITE#g" "$FILES/cloudwatch.json" >"$conf/s3-pull-deploy.json"

case $CLOUDWATCH_AGENT in
'') exit 0 ;;
dnf) dnf -q -y install amazon-cloudwatch-agent ;;
*)
	command -v curl >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends ca-certificates curl
	curl -fsSL -o /tmp/cloudwatch.deb "$CLOUDWATCH_AGENT"
	dpkg -i /tmp/cloudwatch.deb
	rm /tmp/cloudwatch.deb
	;;
esac
systemctl enable amazon-cloudwatch-agent
