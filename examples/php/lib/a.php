<?php

declare(strict_types=1);

const A = 'dev';
