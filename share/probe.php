<?php
/*
 * s3-pull-deploy's probe: what opcache of this pool holds, what it is to hold next, and its reset.
 *
 * It answers nobody but the agent, through a server block that listens on the machine only (see
 * nginx/local.conf). All but POST with the header X-Deploy-Opcache: 1 is 404, so that neither a link, nor
 * a form, nor a curious visitor of a wrong server block gets anything.
 *
 *   action=status    what there is
 *   action=compile   compiles files of a release, for at most ms milliseconds: release=ID, files=paths in it, one a line; before
 *                    that, what opcache.file_cache keeps of releases that are gone is removed
 *   action=cached    which of the same are not in opcache
 *   action=linked    which of these files (of the live release) were asked for through the link, unresolved
 *   action=reset     empties opcache; PHP does it before the next request that finds nobody in the cache
 *
 * The answer is one JSON object. It keeps its shape where opcache is off, not loaded, or closed to this
 * script by opcache.restrict_api or disable_functions. "protocol" changes when the meaning of a field does.
 *
 * DEPLOY_ROOT is the link `active` of the site; releases lie beside it. Without it, DOCUMENT_ROOT is taken.
 * Nothing outside of the folder of a release is compiled: a link that leads out of it is left alone.
 */

// A warning in front of the JSON would spoil it; what fails is said in the answer.
ini_set('display_errors', '0');
error_reporting(0);

$method = isset($_SERVER['REQUEST_METHOD']) ? $_SERVER['REQUEST_METHOD'] : '';
$header = isset($_SERVER['HTTP_X_DEPLOY_OPCACHE']) ? $_SERVER['HTTP_X_DEPLOY_OPCACHE'] : '';
$action = isset($_POST['action']) ? $_POST['action'] : '';
if ($method !== 'POST' || $header !== '1' || !in_array($action, array('status', 'compile', 'cached', 'linked', 'reset'), true)) {
    http_response_code(404);
    exit;
}

/** The link `active` as the web server knows it; '' when it says nothing. */
function s3pd_link()
{
    foreach (array('DEPLOY_ROOT', 'DOCUMENT_ROOT') as $name) {
        if (!empty($_SERVER[$name])) {
            return rtrim($_SERVER[$name], '/');
        }
    }
    return '';
}

/** The release that the link names now: past PHP's realpath cache, which may be minutes old. '' when nothing is live yet. */
function s3pd_root()
{
    clearstatcache(true);
    return s3pd_link() === '' ? '' : (string) realpath(s3pd_link());
}

/** A release's id: the last folder whose name is a release's time, else the last folder. */
function s3pd_release($root)
{
    if (preg_match_all('~/(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?=/|$)~', $root, $found)) {
        return end($found[1]);
    }
    return basename($root);
}

/** Whether opcache's functions refuse this script; they then return false, as when opcache is off. */
function s3pd_restricted()
{
    if (extension_loaded('Zend OPcache')) {
        foreach (array('opcache_reset', 'opcache_get_status', 'opcache_compile_file', 'opcache_is_script_cached') as $function) {
            if (!function_exists($function)) {
                return true; // disable_functions
            }
        }
    }
    $only = (string) ini_get('opcache.restrict_api');
    return $only !== '' && strpos($_SERVER['SCRIPT_FILENAME'], $only) !== 0;
}

/** The files that are asked about. */
function s3pd_files()
{
    $list = isset($_POST['files']) && is_string($_POST['files']) ? $_POST['files'] : '';
    return $list === '' ? array() : explode("\n", $list);
}

/** A folder of a release, without any link in it; '' when there is none beside the link. */
function s3pd_folder($release)
{
    if (!is_string($release) || !preg_match('~^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$~D', $release)) {
        return '';
    }
    clearstatcache(true);
    $base = realpath(dirname(s3pd_link()));
    $folder = $base === false ? false : realpath($base . '/' . $release);
    return $folder === $base . '/' . $release && is_dir($folder) ? $folder : '';
}

/**
 * Compiles files until the time is up; $done counts them. What counts is what opcache keeps, for the compile says yes
 * also to what it throws away: $broken are those that PHP cannot compile, or not after others in the same request (which define
 * the same function), $unkept those that opcache does not keep; both as numbers in the list.
 */
function s3pd_compile($folder, $files, $until, &$done, &$broken, &$unkept)
{
    foreach ($files as $i => $file) {
        $done = $i + 1; // before the work: if this file ends the request, the next one begins behind it
        $path = realpath($folder . '/' . $file);
        if ($path === false || strpos($path, $folder . '/') !== 0) {
            continue;
        }
        if (!opcache_is_script_cached($path)) {
            $broken[$i] = $i;
            try {
                $compiled = opcache_compile_file($path);
            } catch (Throwable $e) {
                $compiled = false;
            }
            if ($compiled) {
                unset($broken[$i]);
                if (!opcache_is_script_cached($path)) {
                    $unkept[] = $i;
                }
            }
        }
        if (microtime(true) >= $until) {
            break;
        }
    }
}

/**
 * Removes what opcache.file_cache keeps of releases that are no longer on the disk, as much as there is time for: PHP itself
 * removes nothing there. Below the cache's folder is one for each build of PHP, named by 32 digits, and in it the scripts' whole paths.
 * No link is followed.
 */
function s3pd_forget($until)
{
    $cache = (string) ini_get('opcache.file_cache');
    $base = realpath(dirname(s3pd_link()));
    foreach ($base !== false && is_dir($cache) ? scandir($cache) : array() as $build) {
        $site = $cache . '/' . $build . $base;
        if (!preg_match('~^[0-9a-f]{32}$~D', $build) || realpath($site) !== realpath($cache) . '/' . $build . $base) {
            continue;
        }
        foreach (scandir($site) as $id) {
            if (preg_match('~^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d$~D', $id) && !file_exists($base . '/' . $id)) {
                s3pd_remove($site . '/' . $id, $until);
            }
        }
    }
}

/** Removes a file, or a folder and all in it, until the time is up. */
function s3pd_remove($path, $until)
{
    if (is_link($path) || !is_dir($path)) {
        unlink($path);
        return;
    }
    foreach (array_diff(scandir($path) ?: array(), array('.', '..')) as $name) {
        if (microtime(true) >= $until) {
            return;
        }
        s3pd_remove($path . '/' . $name, $until);
    }
    rmdir($path);
}

/** The numbers of the files that opcache does not have. */
function s3pd_missing($folder, $files)
{
    $missing = array();
    foreach ($files as $i => $file) {
        $path = realpath($folder . '/' . $file);
        if ($path === false || strpos($path, $folder . '/') !== 0 || !opcache_is_script_cached($path)) {
            $missing[] = $i;
        }
    }
    return $missing;
}

/** One number of opcache's status, 0 where there is none. */
function s3pd_number($status, $group, $name)
{
    return isset($status[$group][$name]) ? (int) $status[$group][$name] : 0;
}

/** What there is, for every answer. */
function s3pd_status($restricted)
{
    $status = function_exists('opcache_get_status') ? opcache_get_status(false) : false;
    $root = s3pd_root();
    $cache = (string) ini_get('opcache.file_cache');
    $used = function_exists('opcache_get_configuration') ? opcache_get_configuration() : false; // without a folder that was not there at the start
    return array(
        'php' => PHP_VERSION,
        'root' => $root,
        'base' => (string) realpath(dirname(s3pd_link())),
        'release' => s3pd_release($root),
        'enabled' => is_array($status) && !empty($status['opcache_enabled']),
        'restricted' => $restricted,
        'restarting' => !empty($status['restart_pending']) || !empty($status['restart_in_progress']),
        'full' => !empty($status['cache_full']),
        'scripts' => s3pd_number($status, 'opcache_statistics', 'num_cached_scripts'),
        'keys' => s3pd_number($status, 'opcache_statistics', 'num_cached_keys'),
        'max_keys' => s3pd_number($status, 'opcache_statistics', 'max_cached_keys'),
        'used_memory' => s3pd_number($status, 'memory_usage', 'used_memory'),
        'free_memory' => s3pd_number($status, 'memory_usage', 'free_memory'),
        'wasted_memory' => s3pd_number($status, 'memory_usage', 'wasted_memory'),
        'used_strings' => s3pd_number($status, 'interned_strings_usage', 'used_memory'),
        'free_strings' => s3pd_number($status, 'interned_strings_usage', 'free_memory'),
        'started' => s3pd_number($status, 'opcache_statistics', 'start_time'),
        'last_restart' => s3pd_number($status, 'opcache_statistics', 'last_restart_time'),
        'own_restarts' => s3pd_number($status, 'opcache_statistics', 'oom_restarts')
            + s3pd_number($status, 'opcache_statistics', 'hash_restarts'),
        'settings' => array(
            'enable' => (bool) ini_get('opcache.enable'),
            'validate_timestamps' => (bool) ini_get('opcache.validate_timestamps'),
            'file_update_protection' => (int) ini_get('opcache.file_update_protection'),
            'revalidate_freq' => (int) ini_get('opcache.revalidate_freq'),
            'file_cache' => $cache,
            'file_cache_used' => !empty($used['directives']['opcache.file_cache']) && is_writable($cache),
            'file_cache_only' => (bool) ini_get('opcache.file_cache_only'),
            'use_cwd' => (bool) ini_get('opcache.use_cwd'),
            'preload' => (string) ini_get('opcache.preload'),
        ),
    );
}

$restricted = s3pd_restricted();
$answer = array('probe' => 's3-pull-deploy', 'protocol' => 2, 'action' => $action);
$done = 0;
$broken = $unkept = array();
$folder = isset($_POST['release']) ? s3pd_folder($_POST['release']) : '';

// Also when a file that is compiled ends the request: out of memory, for instance.
register_shutdown_function(function () use (&$answer, &$done, &$broken, &$unkept, $folder, $action, $restricted) {
    if ($action === 'compile') {
        $answer += array('done' => $done, 'broken' => array_values($broken), 'unkept' => $unkept);
    }
    http_response_code(200);
    header('Content-Type: application/json');
    header('Cache-Control: no-store');
    $answer['folder'] = $folder;
    $answer += s3pd_status($restricted);
    echo json_encode($answer, JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES), "\n";
});

if (!$restricted && function_exists('opcache_reset')) {
    switch ($action) {
        case 'reset':
            $answer['reset'] = opcache_reset();
            break;
        case 'compile':
            if ($folder !== '') {
                $ms = isset($_POST['ms']) ? (int) $_POST['ms'] : 0;
                $until = microtime(true) + min(max($ms, 1), 1000) / 1000;
                try {
                    s3pd_forget($until);
                } catch (Throwable $e) { // disable_functions: then the folder grows
                }
                s3pd_compile($folder, s3pd_files(), $until, $done, $broken, $unkept);
            }
            break;
        case 'cached':
            $answer['missing'] = $folder === '' ? array() : s3pd_missing($folder, s3pd_files());
            break;
        case 'linked':
            $answer['linked'] = array();
            foreach (s3pd_files() as $i => $file) {
                // A name that opcache knows without resolving it is one that a request came by.
                if (is_link(s3pd_link()) && opcache_is_script_cached(s3pd_link() . '/' . $file)) {
                    $answer['linked'][] = $i;
                }
            }
            break;
    }
}
