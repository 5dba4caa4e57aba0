<?php
/**
 * The statements that Magento's MysqlMq module sends, in its order, from real PHP over PDO.
 *
 * Sources: Magento\MysqlMq\Model\ResourceModel\Queue, Magento\MysqlMq\Model\QueueManagement,
 * Magento\Framework\MessageQueue\MessageController, Magento\MessageQueue\Model\ResourceModel\Lock and PoisonPill.
 */

declare(strict_types=1);

const NEW_ = 2;
const IN_PROGRESS = 3;
const COMPLETE = 4;
const RETRY_REQUIRED = 5;
const ERROR = 6;
const TO_BE_DELETED = 7;

/** Arguments of every script: the server's socket, the database; then its own. Affected rows are changed rows. */
function connect(array $arguments): PDO
{
    $connection = new PDO("mysql:unix_socket={$arguments[0]};dbname={$arguments[1]};charset=utf8mb4", 'root', '', [
        PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION,
    ]);
    $connection->exec("SET time_zone = '+00:00'");
    return $connection;
}

/** The script's own arguments; php itself leaves the '--' in front of them when it runs a file. */
function arguments(array $argv): array
{
    return array_values(array_filter(array_slice($argv, 1), fn ($each) => $each !== '--'));
}

function run(PDO $connection, string $statement, array $values = []): PDOStatement
{
    $prepared = $connection->prepare($statement);
    $prepared->execute($values);
    return $prepared;
}

function say(string ...$words): void
{
    fwrite(STDOUT, implode(' ', $words) . "\n");
    fflush(STDOUT);
}

/** MessageEncoder encodes the string that the observer passed once more; ids of the message for several queues. */
function publish(PDO $connection, string $topic, string $published, array $queues): int
{
    run($connection, 'INSERT INTO queue_message (topic_name, body) VALUES (?, ?)', [$topic, json_encode($published)]);
    $message = (int) $connection->lastInsertId();
    $places = implode(', ', array_fill(0, count($queues), '?'));
    $ids = run($connection, "SELECT queue.id FROM queue WHERE queue.name IN ($places)", $queues)->fetchAll(PDO::FETCH_COLUMN);
    foreach ($ids as $queue) {
        run(
            $connection,
            'INSERT INTO queue_message_status (queue_id, message_id, status) VALUES (?, ?, ?)',
            [$queue, $message, NEW_]
        );
    }
    return $message;
}

function select_messages(PDO $connection, string $queue): ?array
{
    $row = run(
        $connection,
        'SELECT queue_message_status.id AS relation_id, queue_message_status.message_id, queue_message.body
         FROM queue_message
         INNER JOIN queue_message_status ON queue_message.id = queue_message_status.message_id
         INNER JOIN queue ON queue.id = queue_message_status.queue_id
         WHERE queue_message_status.status IN (2, 5) AND queue.name = ?
         ORDER BY queue_message_status.updated_at ASC, queue_message_status.id ASC LIMIT 1',
        [$queue]
    )->fetch(PDO::FETCH_ASSOC);
    return $row ?: null;
}

/** No look at the status: taken if a row changed. */
function take_in_progress(PDO $connection, int $relation): bool
{
    $update = 'UPDATE queue_message_status SET status = ? WHERE id = ?';
    return run($connection, $update, [IN_PROGRESS, $relation])->rowCount() === 1;
}

/** False: 'already processed', to be acknowledged without processing. */
function lock_message(PDO $connection, string $consumer, int $message): bool
{
    $code = md5("$consumer-$message");
    if (run($connection, 'SELECT id FROM queue_lock WHERE message_code = ?', [$code])->fetch() !== false) {
        return false;
    }
    run($connection, 'INSERT INTO queue_lock (message_code) VALUES (?)', [$code]);
    return true;
}

function acknowledge(PDO $connection, int $relation): void
{
    run($connection, 'UPDATE queue_message_status SET status = ? WHERE id = ?', [COMPLETE, $relation]);
}

/** QueueManagement::markMessagesForDelete and ResourceModel\Queue::deleteMarkedMessages, at Magento's defaults. */
function clean_up(PDO $connection): void
{
    $minutes = [COMPLETE => 10080, ERROR => 10080, NEW_ => 10080, IN_PROGRESS => 1440];
    foreach ($minutes as $status => $lifetime) {
        $expired = run(
            $connection,
            'SELECT id FROM queue_message_status WHERE status = ? AND updated_at < NOW() - INTERVAL ? MINUTE',
            [$status, $lifetime]
        )->fetchAll(PDO::FETCH_COLUMN);
        foreach ($expired as $relation) {
            if ($status === IN_PROGRESS) {
                run(
                    $connection,
                    'UPDATE queue_message_status SET status = 5, number_of_trials = number_of_trials+1 WHERE id = ?',
                    [$relation]
                );
            } else {
                run($connection, 'UPDATE queue_message_status SET status = ? WHERE id = ?', [TO_BE_DELETED, $relation]);
            }
        }
    }
    $connection->exec(
        'DELETE FROM queue_message WHERE id NOT IN
         (SELECT message_id FROM (SELECT DISTINCT message_id FROM queue_message_status WHERE status <> 7) AS kept)'
    );
}

/** bin/magento queue:consumers:restart */
function change_poison_pill(PDO $connection): void
{
    $version = uniqid('version-');
    if ($connection->query('SELECT version FROM queue_poison_pill')->fetch() === false) {
        run($connection, 'INSERT INTO queue_poison_pill (version) VALUES (?)', [$version]);
    } else {
        run($connection, 'UPDATE queue_poison_pill SET version = ?', [$version]);
    }
}
