<?php
// Says in each page which release made it: `curl -s https://promo.example.com/ | grep generator`.

add_action('wp_head', static function (): void {
    printf('<meta name="generator" content="%s">' . "\n", esc_attr('release ' . basename(rtrim(ABSPATH, '/'))));
});
