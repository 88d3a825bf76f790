<?php

declare(strict_types=1);

const B = 'dev';
