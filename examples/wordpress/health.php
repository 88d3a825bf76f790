<?php
// For the agent's health check after a flip: this release's WordPress loads, with its configuration and database. Answers
// 200 before WordPress is installed too, since the first release has to go live for that.

declare(strict_types=1);

define('WP_INSTALLING', true); // no redirect to the installation, no plugins and theme
require __DIR__ . '/wp-load.php';

global $wpdb;
$ok = $wpdb->check_connection(false);
http_response_code($ok ? 200 : 500);
header('Content-Type: text/plain');
header('Cache-Control: no-store');
echo $ok ? 'ok ' : 'no database ', basename(__DIR__), "\n";
