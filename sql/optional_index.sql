-- Optional. It helps when the four queues keep more than about 100,000 completed messages, or when other queues are that
-- busy: the sweep, the start of a worker, `status` and PHP's own consumers then no longer read completed rows. Ordered by
-- message_id, which is the order of delivery, and not by updated_at, which the expiry guard changes.
ALTER TABLE {prefix}queue_message_status ADD INDEX ZITHARA_QUEUE_ID_STATUS_MESSAGE_ID (queue_id, status, message_id);
