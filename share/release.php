<?php
/*
 * Which release PHP serves over the path that visitors take: the agent asks it after each flip, at /_deploy/release of the
 * public server block (see nginx/site.conf, apache/site.conf).
 *
 * It tells nobody more than the header X-Deploy-Release does: the release's id, whether it is the one asked for (?is=ID),
 * and whether the web server handed over a folder without any link in it, as it should. There is nothing to change here.
 */
ini_set('display_errors', '0');

$root = isset($_SERVER['DOCUMENT_ROOT']) ? rtrim($_SERVER['DOCUMENT_ROOT'], '/') : '';
$real = (string) realpath($root); // by PHP's own cache of links, on purpose: what is stale there is stale for visitors
$is = isset($_GET['is']) && is_string($_GET['is']) ? $_GET['is'] : '';
preg_match_all('~/(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?=/|$)~', $real, $found);

header('Content-Type: application/json');
header('Cache-Control: no-store');
echo json_encode(array(
    'probe' => 's3-pull-deploy',
    'protocol' => 2,
    'action' => 'release',
    'release' => (string) end($found[1]),
    'is' => $is !== '' && in_array($is, explode('/', $real), true),
    'resolved' => $real !== '' && $real === $root,
), JSON_INVALID_UTF8_SUBSTITUTE), "\n";
