<?php
/**
 * SOCKET DATABASE QUEUE CONSUMER WINDOW: a consumer that says what it does with each message, until its input ends.
 *
 * WINDOW: milliseconds between reading a message and taking it, or `step`: it then says `selected ID` and waits for a line.
 */

declare(strict_types=1);

require __DIR__ . '/magento.php';

[, , $queue, $consumer, $window] = $arguments = arguments($argv);
$connection = connect($arguments);
say('ready');
while (true) {
    $row = select_messages($connection, $queue);
    if ($row === null) {
        $read = [STDIN];
        $none = null;
        if (stream_select($read, $none, $none, 0, 20000) && fgets(STDIN) === false) {
            exit(0);
        }
        continue;
    }
    [$relation, $message] = [(int) $row['relation_id'], (int) $row['message_id']];
    if ($window === 'step') {
        say('selected', (string) $message);
        if (fgets(STDIN) === false) {
            exit(0);
        }
    } else {
        usleep(1000 * (int) $window);
    }
    if (!take_in_progress($connection, $relation)) {
        say('passed', (string) $message);
        continue;
    }
    $ours = lock_message($connection, $consumer, $message);
    acknowledge($connection, $relation);
    say($ours ? 'processed' : 'acknowledged', (string) $message);
}
