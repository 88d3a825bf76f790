<?php
// For the agent's health check after a flip: 200 when the application's files belong together, else 500.
// A real application would ask for its database here, but for nothing whose failure it survives.

declare(strict_types=1);

require __DIR__ . '/lib/a.php';
require __DIR__ . '/lib/b.php';

$release = basename(__DIR__);
$ok = A === B;

http_response_code($ok ? 200 : 500);
header("X-Release: $release");
header('Content-Type: application/json');
header('Cache-Control: no-store');
echo json_encode(['ok' => $ok, 'release' => $release]), "\n";
