#!/bin/sh
# Installs the package and connects it with what web.sh set up: the local route and the preview of nginx, PHP's settings. Runs as root while an
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

# adapt FILE: a snippet with the lines to change changed. Where one has other lines by now, nginx would serve nothing, silently.
adapt() {
	sed -e "s#/var/www/promo.example.com/active#$ROOT/active#" -e "s#unix:/run/php/php8.2-fpm.sock#unix:$PHP_SOCKET#" \
		-e "s#server_name promo.example.com#server_name $SERVER_NAME#" \
		-e "s#/var/www/promo.example.com/\(\$[a-z_]*\)/public#$ROOT/\1$PUBLIC#" "$1"
}
share=/usr/share/s3-pull-deploy
adapt "$share/nginx/local.conf" >"/etc/nginx/conf.d/$SITE-deploy.conf"
adapt "$share/nginx/preview.conf" >"/etc/nginx/conf.d/$SITE-preview.conf"
if grep -n '^[^#]*promo' /etc/nginx/conf.d/"$SITE"-deploy.conf /etc/nginx/conf.d/"$SITE"-preview.conf; then
	echo "agent.sh: these lines of the package's snippets are not adapted to $SITE" >&2
	exit 1
fi
cp "$share/php/opcache.ini" "$PHP_INI/99-s3-pull-deploy.ini"
cp "$share/php/fpm.conf" "$PHP_POOLS/zz-s3-pull-deploy.conf" # after www.conf, whose pool it adds to
install -m 755 "$FILES/start.sh" /usr/local/sbin/s3-pull-deploy-start
nginx -t
