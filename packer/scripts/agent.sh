#!/bin/sh
# Installs the package and connects it with what web.sh set up: the local route of nginx and PHP's settings. Runs as root while an
# image is baked; starts nothing.
#
#   PACKAGE   the .deb or .rpm of `make package`
#   FILES     the folder with the files of this repository for images, packer/files
set -eu
: "${PACKAGE:?}" "${FILES:?}"
# shellcheck source=/dev/null
. /etc/default/s3-pull-deploy

case $PACKAGE in
*.deb) DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "$PACKAGE" ;;
*.rpm) dnf -q -y install "$PACKAGE" ;;
*)
	echo "agent.sh: PACKAGE=$PACKAGE is neither a .deb nor an .rpm" >&2
	exit 1
	;;
esac

share=/usr/share/s3-pull-deploy
sed -e "s#/var/www/promo.example.com/active#$ROOT/active#" -e "s#unix:/run/php/php8.2-fpm.sock#unix:$PHP_SOCKET#" \
	"$share/nginx/local.conf" >"/etc/nginx/conf.d/$SITE-deploy.conf"
cp "$share/php/opcache.ini" "$PHP_INI/99-s3-pull-deploy.ini"
install -m 755 "$FILES/start.sh" /usr/local/sbin/s3-pull-deploy-start
nginx -t
