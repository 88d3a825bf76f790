#!/bin/sh
# The first boot of an instance; a template: main.tf fills in what is in braces.
# shellcheck disable=SC2154
set -eu
# shellcheck source=/dev/null
. /etc/default/s3-pull-deploy

umask 077 # the settings and, below, the password are for root alone
cat >"/etc/s3-pull-deploy/$SITE.yml" <<'END'
${settings}
END
umask 022

mkdir -p /srv/uploads
echo "${uploads}:/ /srv/uploads nfs4 nfsvers=4.1,hard,timeo=600,_netdev 0 0" >>/etc/fstab
mount /srv/uploads
chown www-data: /srv/uploads

secret() { aws --region "${region}" secretsmanager get-secret-value --secret-id "$@" --query SecretString --output text; }
# Assigned first: in the here-document a command that failed would leave an empty value and go on.
wp_secret=$(secret "${secret}")
# The version that the database has: a new password changes the user data with it, and so replaces the instances.
password=$(secret "${password}" --version-id "${version}")
case $password$wp_secret in
*[!A-Za-z0-9]*)
	echo "user data: a secret has other characters than letters and digits, which PHP's pool would not take as they are" >&2
	exit 1
	;;
esac

# The environment of PHP, which wp-config.php reads. Only root reads the file; php-fpm starts as root.
pool=$PHP_POOLS/site.conf
umask 077
cat >"$pool" <<END
[www]
env[DB_HOST] = "${database}"
env[DB_NAME] = wordpress
env[DB_USER] = wordpress
env[DB_PASSWORD] = "$password"
env[WP_HOME] = "${url}"
env[WP_SECRET] = "$wp_secret"
END

s3-pull-deploy-start
