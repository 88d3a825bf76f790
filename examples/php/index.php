<?php
// One page made of three files, each of which says which version it is from. Were two releases ever mixed
// in one request, the page would show it; in plain text (/?plain) a program can count it.

declare(strict_types=1);

const PAGE = 'dev';

require __DIR__ . '/lib/a.php';
usleep(max(0, min(100_000, (int) ($_GET['pause'] ?? 0)))); // microseconds: room for a flip between the files
require __DIR__ . '/lib/b.php';

$release = basename(__DIR__); // the folder that this file really lies in, named like the release
header("X-Release: $release");

if (isset($_GET['plain'])) {
    header('Content-Type: text/plain; charset=utf-8');
    printf("release=%s page=%s a=%s b=%s\n", $release, PAGE, A, B);
    return;
}

$whole = PAGE === A && PAGE === B;
$e = static fn (string $s): string => htmlspecialchars($s, ENT_QUOTES);
?>
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title><?= $e($release) ?></title>
<link rel="stylesheet" href="/assets/style.css?<?= $e(rawurlencode($release)) ?>">
<main>
  <p class="label">This instance serves release</p>
  <h1><?= $e($release) ?></h1>
  <ul>
    <li><code>index.php</code> <b><?= $e(PAGE) ?></b></li>
    <li><code>lib/a.php</code> <b><?= $e(A) ?></b></li>
    <li><code>lib/b.php</code> <b><?= $e(B) ?></b></li>
  </ul>
  <p class="<?= $whole ? 'whole' : 'mixed' ?>"><?= $whole ? 'One release, whole.' : 'Two releases in one answer!' ?></p>
</main>
