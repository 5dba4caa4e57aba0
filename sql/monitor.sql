-- How the fleet of workers is doing: the rows by which workers tell of themselves, and what `status` and the page read.
-- The notation: see queue.sql.

-- ============================== the fleet ==============================

-- worker_seen --
INSERT INTO {prefix}zithara_worker
  (id, host, pid, version, topics, started_at, last_seen_at, metrics_address, in_flight, state, minutes)
VALUES (%(id)s, %(host)s, %(pid)s, %(version)s, %(topics)s, NOW(3), NOW(3), %(metrics_address)s, %(in_flight)s, %(state)s,
        %(minutes)s)
ON DUPLICATE KEY UPDATE last_seen_at = VALUES(last_seen_at), in_flight = VALUES(in_flight), state = VALUES(state),
  minutes = VALUES(minutes), metrics_address = VALUES(metrics_address)

-- worker_gone --
DELETE FROM {prefix}zithara_worker WHERE id = %(id)s

-- workers_forget --
DELETE FROM {prefix}zithara_worker WHERE last_seen_at < NOW(3) - INTERVAL 1 DAY

-- ============================== what an operator sees ==============================

-- clock --
SELECT UNIX_TIMESTAMP(NOW(3)) AS now

-- queue_counts --
-- All but the completed messages. Through Magento's own (status, updated_at), so that millions of completed rows are not
-- read; pending rows of other queues are.
SELECT queue_id, status, COUNT(*) AS messages, UNIX_TIMESTAMP(MIN(updated_at)) AS oldest
FROM {prefix}queue_message_status {by_status}
WHERE status IN (2, 3, 5, 6) AND queue_id IN %(queue_ids)s
GROUP BY queue_id, status

-- queue_counts_indexed --
-- The same with the optional index, which alone answers it; the oldest is then the one with the lowest message id.
SELECT c.queue_id, c.status, c.messages,
       (SELECT UNIX_TIMESTAMP(s.updated_at) FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
        WHERE s.queue_id = c.queue_id AND s.message_id = c.first) AS oldest
FROM (SELECT queue_id, status, COUNT(*) AS messages, MIN(message_id) AS first
      FROM {prefix}queue_message_status FORCE INDEX ({pending})
      WHERE queue_id IN %(queue_ids)s AND status IN (2, 3, 5, 6)
      GROUP BY queue_id, status) AS c

-- complete_counts --
-- Reads every row of the queues: only when somebody asks for it.
SELECT queue_id, COUNT(*) AS messages FROM {prefix}queue_message_status
WHERE queue_id IN %(queue_ids)s AND status = 4
GROUP BY queue_id

-- group_counts --
-- Busy groups only, however long the backlog is.
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
SELECT id, host, pid, version, topics, UNIX_TIMESTAMP(started_at) AS started_at,
       UNIX_TIMESTAMP(last_seen_at) AS last_seen_at, metrics_address, in_flight, state, minutes
FROM {prefix}zithara_worker
ORDER BY host, started_at, id
