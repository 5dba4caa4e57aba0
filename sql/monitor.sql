-- The registry of running workers, and what `status`, the page and the metrics read. Only plain reads, except of the registry.
-- The notation: see queue.sql.

-- ============================== registry ==============================

-- worker_seen --
INSERT INTO {prefix}zithara_worker
  (id, host, pid, role, version, topics, started_at, last_seen_at, metrics_address, in_flight, state, minutes)
VALUES (%(id)s, %(host)s, %(pid)s, %(role)s, %(version)s, %(topics)s, NOW(3), NOW(3), %(metrics_address)s, %(in_flight)s,
        %(state)s, %(minutes)s)
ON DUPLICATE KEY UPDATE last_seen_at = VALUES(last_seen_at), in_flight = VALUES(in_flight), state = VALUES(state),
  minutes = VALUES(minutes), metrics_address = VALUES(metrics_address)

-- worker_stopped --
-- It serves no topic any more; its minutes go on counting for the last hour.
UPDATE {prefix}zithara_worker
SET last_seen_at = NOW(3), topics = '', metrics_address = NULL, in_flight = 0, state = '{}', minutes = %(minutes)s
WHERE id = %(id)s

-- workers_forget --
-- Those that stopped in order after an hour, dead ones after a day. In slices, as every statement that changes any number of rows: clusters certify whole transactions. Served by KEY seen.
DELETE FROM {prefix}zithara_worker
WHERE last_seen_at < NOW(3) - INTERVAL 1 HOUR AND (topics = '' OR last_seen_at < NOW(3) - INTERVAL 1 DAY) LIMIT %(limit)s

-- ============================== the fleet, as it is read ==============================

-- clock --
SELECT UNIX_TIMESTAMP(NOW(3)) AS now

-- queue_counts --
-- Counts all messages but the completed ones. Served by Magento's index (status, updated_at), which does not read completed
-- rows, but reads pending rows of other queues.
SELECT queue_id, status, COUNT(*) AS messages, UNIX_TIMESTAMP(MIN(updated_at)) AS oldest
FROM {prefix}queue_message_status {by_status}
WHERE status IN (2, 3, 5, 6) AND queue_id IN %(queue_ids)s
GROUP BY queue_id, status

-- queue_counts_indexed --
-- The same by the optional index alone. The oldest message is then the one with the lowest message id.
SELECT c.queue_id, c.status, c.messages,
       (SELECT UNIX_TIMESTAMP(s.updated_at) FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
        WHERE s.queue_id = c.queue_id AND s.message_id = c.first) AS oldest
FROM (SELECT queue_id, status, COUNT(*) AS messages, MIN(message_id) AS first
      FROM {prefix}queue_message_status FORCE INDEX ({pending})
      WHERE queue_id IN %(queue_ids)s AND status IN (2, 3, 5, 6)
      GROUP BY queue_id, status) AS c

-- complete_counts --
-- Reads every row of the queues, so it runs only on request.
SELECT queue_id, COUNT(*) AS messages FROM {prefix}queue_message_status
WHERE queue_id IN %(queue_ids)s AND status = 4
GROUP BY queue_id

-- group_counts --
-- Reads the rows of busy groups only, however long the backlog is.
SELECT queue_id,
       COALESCE(SUM(lease_until >= NOW(3)), 0) AS in_flight,
       COALESCE(SUM(lease_until < NOW(3)), 0) AS expired,
       COALESCE(SUM(not_before > NOW(3)), 0) AS waiting,
       UNIX_TIMESTAMP(MIN(not_before)) AS next_due
FROM {prefix}zithara_message_group
WHERE queue_id IN %(queue_ids)s
GROUP BY queue_id

-- leases_by_worker --
SELECT worker_id, queue_id, COUNT(*) AS messages, UNIX_TIMESTAMP(MIN(lease_until)) AS lease_until
FROM {prefix}zithara_message_group
WHERE worker_id IS NOT NULL
GROUP BY worker_id, queue_id

-- workers --
-- Those seen last, so the living ones are among them: a worker that is killed at each start leaves a row each time, for a
-- day. Served by KEY seen.
SELECT id, host, pid, role, version, topics, UNIX_TIMESTAMP(started_at) AS started_at,
       UNIX_TIMESTAMP(last_seen_at) AS last_seen_at, metrics_address, in_flight, state, minutes
FROM {prefix}zithara_worker
ORDER BY last_seen_at DESC LIMIT %(limit)s

-- relay_aside_counts --
-- Messages from RabbitMQ that are kept aside: a few rows, whose contents InnoDB stores on pages of their own.
SELECT topic_name, COUNT(*) AS messages FROM {prefix}zithara_relay_aside WHERE piece = 0 GROUP BY topic_name

-- reconciliations --
-- The last result of each kind that `reconcile` compared.
SELECT kind, UNIX_TIMESTAMP(started_at) AS started_at, UNIX_TIMESTAMP(finished_at) AS finished_at, result
FROM {prefix}zithara_reconciliation
