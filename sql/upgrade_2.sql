-- From schema 1 to schema 2, in place, while workers of both versions run: workers of version 0.1 can use schema 2.
-- `-- table.column --` begins a statement that adds a column. `zithara-worker install` skips a column that exists, so run it
-- again to finish an upgrade that was interrupted. By hand, skip what the server calls a duplicate column.
-- The comment of zithara_message_group changes last: from then on the tables count as schema 2.

-- zithara_message_group.claim --
ALTER TABLE {prefix}zithara_message_group
  ADD COLUMN claim BIGINT UNSIGNED NOT NULL DEFAULT 0
  COMMENT 'the claim of that worker which won the group: every statement of the claim names it' AFTER worker_id;

-- zithara_message_group.suspect --
ALTER TABLE {prefix}zithara_message_group
  ADD COLUMN suspect TINYINT(1) NOT NULL DEFAULT 0
  COMMENT 'its last worker died while it held the head: the head is delivered alone' AFTER claim;

-- zithara_delivery_failure.unwitnessed --
ALTER TABLE {prefix}zithara_delivery_failure
  ADD COLUMN unwitnessed INT UNSIGNED NOT NULL DEFAULT 0
  COMMENT 'those of them after which nothing shows that the path served anybody' AFTER attempts;

-- zithara_delivery_failure.retries --
ALTER TABLE {prefix}zithara_delivery_failure
  ADD COLUMN retries INT UNSIGNED NOT NULL DEFAULT 0
  COMMENT 'how often an operator asked for a retry' AFTER unwitnessed;

-- zithara_delivery_failure.discarded_at --
ALTER TABLE {prefix}zithara_delivery_failure
  ADD COLUMN discarded_at DATETIME(3) NULL
  COMMENT 'an operator decided that the message is not delivered' AFTER newer_delivered;

-- zithara_delivery_failure.attempts --
ALTER TABLE {prefix}zithara_delivery_failure
  MODIFY COLUMN attempts INT UNSIGNED NOT NULL COMMENT 'our failed attempts, without what PHP consumers tried';

-- zithara_delivery_failure.newer_delivered --
ALTER TABLE {prefix}zithara_delivery_failure
  MODIFY COLUMN newer_delivered TINYINT(1) NOT NULL DEFAULT 0
  COMMENT '1: a newer message of the group was delivered since, + 2: an operator forced the retry';

-- zithara_lock --
CREATE TABLE IF NOT EXISTS {prefix}zithara_lock (
  name        VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  owner       VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  lease_until DATETIME(3) NOT NULL,
  PRIMARY KEY (name)
) ENGINE=InnoDB;

-- zithara_message_group --
ALTER TABLE {prefix}zithara_message_group COMMENT='zithara-worker schema 2';
