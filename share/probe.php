<?php
/*
 * s3-pull-deploy's probe: what opcache of this pool holds, and its reset.
 *
 * It answers nobody but the agent, through a server block that listens on the machine only (see
 * nginx/local.conf). All but POST with the header X-Deploy-Opcache: 1 is 404, so that neither a link, nor
 * a form, nor a curious visitor of a wrong server block gets anything.
 *
 *   action=status   what there is
 *   action=reset    empties opcache; PHP does it before the next request that finds nobody in the cache
 *
 * The answer is one JSON object. It keeps its shape where opcache is off, not loaded, or closed to this
 * script by opcache.restrict_api or disable_functions. "protocol" changes when the meaning of a field does.
 *
 * DEPLOY_ROOT is the link `active` of the site. Without it, DOCUMENT_ROOT is taken.
 */

// A warning in front of the JSON would spoil it; what fails is said in the answer.
ini_set('display_errors', '0');
error_reporting(0);

$method = isset($_SERVER['REQUEST_METHOD']) ? $_SERVER['REQUEST_METHOD'] : '';
$header = isset($_SERVER['HTTP_X_DEPLOY_OPCACHE']) ? $_SERVER['HTTP_X_DEPLOY_OPCACHE'] : '';
$action = isset($_POST['action']) ? $_POST['action'] : '';
if ($method !== 'POST' || $header !== '1' || !in_array($action, array('status', 'reset'), true)) {
    http_response_code(404);
    exit;
}

/** The release that the link names now: past PHP's realpath cache, which may be minutes old. */
function deploy_root()
{
    foreach (array('DEPLOY_ROOT', 'DOCUMENT_ROOT') as $name) {
        if (!empty($_SERVER[$name])) {
            clearstatcache(true);
            return (string) realpath($_SERVER[$name]); // '' when nothing is live yet
        }
    }
    return '';
}

/** A release's id: the last folder whose name is a release's time, else the last folder. */
function deploy_release($root)
{
    if (preg_match_all('~/(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?=/|$)~', $root, $found)) {
        return end($found[1]);
    }
    return basename($root);
}

/** Whether opcache's functions refuse this script; they then return false, as when opcache is off. */
function deploy_restricted()
{
    if (extension_loaded('Zend OPcache') && !function_exists('opcache_reset')) {
        return true; // disable_functions
    }
    $only = (string) ini_get('opcache.restrict_api');
    return $only !== '' && strpos($_SERVER['SCRIPT_FILENAME'], $only) !== 0;
}

/** One number of opcache's status, 0 where there is none. */
function deploy_number($status, $group, $name)
{
    return isset($status[$group][$name]) ? (int) $status[$group][$name] : 0;
}

$restricted = deploy_restricted();
$reset = $action === 'reset' && !$restricted && function_exists('opcache_reset') && opcache_reset();
$status = function_exists('opcache_get_status') ? opcache_get_status(false) : false;
$root = deploy_root();

header('Content-Type: application/json');
header('Cache-Control: no-store');
echo json_encode(array(
    'probe' => 's3-pull-deploy',
    'protocol' => 1,
    'action' => $action,
    'php' => PHP_VERSION,
    'root' => $root,
    'release' => deploy_release($root),
    'enabled' => is_array($status) && !empty($status['opcache_enabled']),
    'restricted' => $restricted,
    'reset' => $reset,
    'restarting' => !empty($status['restart_pending']) || !empty($status['restart_in_progress']),
    'full' => !empty($status['cache_full']),
    'scripts' => deploy_number($status, 'opcache_statistics', 'num_cached_scripts'),
    'keys' => deploy_number($status, 'opcache_statistics', 'num_cached_keys'),
    'max_keys' => deploy_number($status, 'opcache_statistics', 'max_cached_keys'),
    'used_memory' => deploy_number($status, 'memory_usage', 'used_memory'),
    'free_memory' => deploy_number($status, 'memory_usage', 'free_memory'),
    'wasted_memory' => deploy_number($status, 'memory_usage', 'wasted_memory'),
    'last_restart' => deploy_number($status, 'opcache_statistics', 'last_restart_time'),
), JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES), "\n";
