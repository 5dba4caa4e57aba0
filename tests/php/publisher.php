<?php
/** SOCKET DATABASE: each line of standard input is a step: `begin`, `publish TOPIC QUEUE[,QUEUE] STRING`, `commit`. */

declare(strict_types=1);

require __DIR__ . '/magento.php';

$connection = connect(arguments($argv));
while (($line = fgets(STDIN)) !== false) {
    $words = explode(' ', rtrim($line, "\n"), 4);
    if ($words[0] === 'begin') {
        $connection->beginTransaction();
        say('begun');
    } elseif ($words[0] === 'commit') {
        $connection->commit();
        say('committed');
    } else {
        say('published', (string) publish($connection, $words[1], $words[3], explode(',', $words[2])));
    }
}
