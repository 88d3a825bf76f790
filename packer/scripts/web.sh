#!/bin/sh
# Installs nginx and PHP and sets up one site behind them, on Debian, Ubuntu or Amazon Linux 2023. Runs as root while an image is
# baked; starts nothing.
#
#   SITE          the site's name
#   SERVER_NAME   its host names, as for nginx; _ for any
#   PUBLIC        the folder in a release that is the document root, such as /public; empty: the release itself
#   PHP           PHP's version on Amazon Linux, such as 8.3; Debian and Ubuntu have one each
#   PHP_MODULES   PHP extensions, by the names that follow php8.x- in the packages
#   PACKAGES      more packages
set -eu
: "${SITE:?}" "${SERVER_NAME:=_}" "${PUBLIC:=}" "${PHP:=8.3}" "${PHP_MODULES:=}" "${PACKAGES:=}"
root=/var/www/$SITE

debian() {
	export DEBIAN_FRONTEND=noninteractive
	# apt starts what it installs, unless this says no.
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
	apt-get -q update
	PHP=$(apt-cache depends php-fpm | sed -n 's/.*Depends: php\([0-9.]*\)-fpm.*/\1/p')
	modules=
	for module in opcache $PHP_MODULES; do modules="$modules php$PHP-$module"; done
	# shellcheck disable=SC2086 # lists of packages
	apt-get -q -y install --no-install-recommends nginx "php$PHP-fpm" $modules $PACKAGES
	rm -f /usr/sbin/policy-rc.d /etc/nginx/sites-enabled/default
	web_user=www-data
	socket=/run/php/php$PHP-fpm.sock
	ini=/etc/php/$PHP/fpm/conf.d
	pools=/etc/php/$PHP/fpm/pool.d
	services="nginx php$PHP-fpm"
}

amazon() {
	modules=
	for module in opcache $PHP_MODULES; do modules="$modules php$PHP-$module"; done
	# shellcheck disable=SC2086 # lists of packages
	dnf -q -y install nginx "php$PHP-fpm" $modules rsyslog logrotate $PACKAGES
	# nginx.conf has a server of its own there, and two may not be the default.
	sed -i 's/ default_server//' /etc/nginx/nginx.conf
	web_user=apache
	socket=/run/php-fpm/www.sock
	ini=/etc/php.d
	pools=/etc/php-fpm.d
	services="nginx php-fpm"
}

if command -v apt-get >/dev/null; then debian; else amazon; fi

# What agent.sh and the scripts at boot need to know.
mkdir -p /etc/default
cat >/etc/default/s3-pull-deploy <<-END
	SITE=$SITE
	ROOT=$root
	WEB_USER=$web_user
	PHP_SOCKET=$socket
	PHP_INI=$ini
	PHP_POOLS=$pools
	SERVER_NAME="$SERVER_NAME"
	PUBLIC=$PUBLIC
	SERVICES="$services"
END
install -d -m 755 "$root"

cat >"/etc/nginx/conf.d/$SITE.conf" <<-END
	# $SITE, as the load balancer reaches it; written by web.sh while the image was baked.
	server {
	    listen 80 default_server;
	    listen [::]:80 default_server;
	    server_name $SERVER_NAME;
	    root $root/active$PUBLIC;
	    index index.php index.html;
	    client_max_body_size 64m;
	    set \$deploy_php unix:$socket;
	    set \$deploy_agent /run/s3-pull-deploy/$SITE;
	    include /usr/share/s3-pull-deploy/nginx/site.conf;

	    location / {
	        try_files \$uri \$uri/ /index.php\$is_args\$args;
	    }
	}
END

# They start with the agent, at boot, when there are settings: see boot/user-data.sh.
# shellcheck disable=SC2086
systemctl disable $services
