-- Optional. It helps when the four queues keep more than about 100,000 completed messages, or when other queues are that
-- busy: the sweep, the start of a worker, `status` and PHP's own consumers then no longer read completed rows. Ordered by
-- message_id, which is the order of delivery, and not by updated_at, which the expiry guard changes.
-- Built while the shop publishes: a server that cannot do that refuses. `zithara-worker install --index` runs it with progress.
ALTER TABLE {prefix}queue_message_status ADD INDEX ZITHARA_QUEUE_ID_STATUS_MESSAGE_ID (queue_id, status, message_id),
  ALGORITHM=INPLACE, LOCK=NONE;
