<?php
// WordPress on a fleet: everything that differs between environments comes from PHP's environment, and nothing is changed on an
// instance. The variables are set in the pool, for example in /etc/php/8.2/fpm/pool.d/site.conf:
//
//   [www]
//   env[DB_HOST] = promo.cluster.example
//   env[DB_NAME] = wordpress
//   env[DB_USER] = wordpress
//   env[DB_PASSWORD] = …
//   env[WP_HOME] = https://promo.example.com
//   env[WP_SECRET] = …          50 random letters, the same on every instance

declare(strict_types=1);

function from_environment(string $name): string
{
    $value = getenv($name);
    if ($value === false || $value === '') {
        http_response_code(500);
        error_log("wp-config.php: $name is not set in the environment of PHP's pool");
        exit('This site is not configured.');
    }
    return $value;
}

define('DB_HOST', from_environment('DB_HOST'));
define('DB_NAME', from_environment('DB_NAME'));
define('DB_USER', from_environment('DB_USER'));
define('DB_PASSWORD', from_environment('DB_PASSWORD'));
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');

// One secret gives WordPress its eight: logins must hold on all instances.
foreach (['AUTH_KEY', 'SECURE_AUTH_KEY', 'LOGGED_IN_KEY', 'NONCE_KEY', 'AUTH_SALT', 'SECURE_AUTH_SALT', 'LOGGED_IN_SALT', 'NONCE_SALT'] as $name) {
    define($name, hash_hmac('sha256', $name, from_environment('WP_SECRET')));
}

define('WP_HOME', from_environment('WP_HOME'));
define('WP_SITEURL', WP_HOME);
define('WP_DEFAULT_THEME', 'hello'); // what a new installation begins with
$table_prefix = 'wp_';

// Code changes only by a deploy: an update from the dashboard would change one instance, until the next release.
define('DISALLOW_FILE_MODS', true);
define('AUTOMATIC_UPDATER_DISABLED', true);

// Scheduled tasks come from one place (a timer on one instance, or a scheduled request), not from whoever visits.
define('DISABLE_WP_CRON', true);

// The load balancer ends TLS.
if (($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '') === 'https') {
    $_SERVER['HTTPS'] = 'on';
}

if (!defined('ABSPATH')) {
    define('ABSPATH', __DIR__ . '/');
}
require_once ABSPATH . 'wp-settings.php';
