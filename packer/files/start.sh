#!/bin/sh
# Starts what the image holds, now and at each boot: the agent, the gate that lets the web server wait for the first
# release, the web server and PHP. Waits for none of them.
set -eu
# shellcheck source=/dev/null
. /etc/default/s3-pull-deploy
# shellcheck disable=SC2086 # a list of units
systemctl enable --now --no-block "s3-pull-deploy-agent@$SITE.service" "s3-pull-deploy-gate@$SITE.service" $SERVICES
