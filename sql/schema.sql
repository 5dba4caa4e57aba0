-- The worker's own tables. The worker creates nothing else in the shop's database.
-- {prefix} is the shop's table prefix. Every statement may be run again: it leaves existing tables as they are.
-- The comment of zithara_message_group carries the version of this schema; workers and `doctor` compare it.

-- One row for each busy message group of a queue. The primary key excludes others: only the worker that inserts the row may
-- deliver the group's head message.
--   in flight            worker_id and lease_until set, not_before NULL
--   waiting or released  worker_id and lease_until NULL; the head may be claimed from not_before on
-- All times are of the database's clock, in UTC.
CREATE TABLE IF NOT EXISTS {prefix}zithara_message_group (
  queue_id    INT UNSIGNED NOT NULL,
  group_key   VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  id          BIGINT UNSIGNED NOT NULL COMMENT 'head: queue_message_status.id',
  message_id  BIGINT UNSIGNED NOT NULL COMMENT 'head: queue_message.id',
  supersedes  MEDIUMTEXT CHARACTER SET ascii NULL COMMENT 'older snapshots that complete with the head: id:message_id,...',  -- or newer messages that follow it
  worker_id   VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
  claim       BIGINT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'the claim of that worker which won the group: every statement of the claim names it',
  suspect     TINYINT(1) NOT NULL DEFAULT 0 COMMENT 'its last worker died while it held the head: the head is delivered alone',
  lease_until DATETIME(3) NULL,
  not_before  DATETIME(3) NULL,
  PRIMARY KEY (queue_id, group_key),
  KEY lease (queue_id, lease_until),      -- claim_expired
  KEY due (queue_id, not_before),         -- claim_due
  KEY worker (worker_id)                  -- lease_renew: one statement renews all of a worker's leases
) ENGINE=InnoDB COMMENT='zithara-worker schema 4';

-- One row for each message that has failed and has not been delivered. A message that an operator discarded keeps its row
-- until Magento's cleanup deletes the message, so that the discard can be taken back.
CREATE TABLE IF NOT EXISTS {prefix}zithara_delivery_failure (
  id              BIGINT UNSIGNED NOT NULL COMMENT 'queue_message_status.id',
  queue_id        INT UNSIGNED NOT NULL,
  message_id      BIGINT UNSIGNED NOT NULL,
  topic_name      VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
  group_key       VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  attempts        INT UNSIGNED NOT NULL COMMENT 'our failed attempts, without what PHP consumers tried',
  unwitnessed     INT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'those of them after which nothing shows that the path served anybody',
  retries         INT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'how often an operator asked for a retry',
  reason_code     VARCHAR(64) CHARACTER SET ascii NOT NULL,
  http_status     SMALLINT UNSIGNED NULL,
  detail          VARCHAR(1000) CHARACTER SET utf8mb4 NOT NULL,
  first_failed_at DATETIME(3) NOT NULL,
  last_failed_at  DATETIME(3) NOT NULL,
  newer_delivered TINYINT(1) NOT NULL DEFAULT 0 COMMENT '1: a newer message of the group was delivered since, + 2: an operator forced the retry',
  discarded_at    DATETIME(3) NULL COMMENT 'an operator decided that the message is not delivered',
  history         TEXT CHARACTER SET utf8mb4 NOT NULL COMMENT 'the last attempts, one JSON object a line',
  PRIMARY KEY (id),
  KEY message_group (queue_id, group_key),   -- failures_of_groups
  KEY recent (queue_id, last_failed_at)      -- `failed list`
) ENGINE=InnoDB;

-- The running workers, so that `status` shows the whole fleet on every host. A row is removed after a day without update.
CREATE TABLE IF NOT EXISTS {prefix}zithara_worker (
  id              VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  host            VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
  pid             INT UNSIGNED NOT NULL,
  role            VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'consume' COMMENT 'consume or relay',
  version         VARCHAR(32) CHARACTER SET ascii NOT NULL,
  topics          VARCHAR(1000) CHARACTER SET utf8mb4 NOT NULL COMMENT 'comma-separated',  -- empty where it stopped in order
  started_at      DATETIME(3) NOT NULL,
  last_seen_at    DATETIME(3) NOT NULL,
  metrics_address VARCHAR(255) CHARACTER SET ascii NULL,
  in_flight       INT UNSIGNED NOT NULL,
  state           TEXT CHARACTER SET utf8mb4 NOT NULL COMMENT 'JSON: circuit breakers, pauses',
  minutes         MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL COMMENT 'JSON: counters and response-time buckets a minute, for the last hour',
  PRIMARY KEY (id),
  KEY seen (last_seen_at)
) ENGINE=InnoDB;

-- One row for each paused topic: by whom, since when, why.
CREATE TABLE IF NOT EXISTS {prefix}zithara_topic_control (
  topic     VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  paused_by VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
  paused_at DATETIME(3) NOT NULL,
  reason    VARCHAR(1000) CHARACTER SET utf8mb4 NOT NULL,
  PRIMARY KEY (topic)
) ENGINE=InnoDB;

-- Locks for what one process of the fleet may do at a time, such as refreshing the access token. A lock whose lease has ended is
-- free. Not GET_LOCK, because clusters refuse it or do not share it between their nodes.
CREATE TABLE IF NOT EXISTS {prefix}zithara_lock (
  name        VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  owner       VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  lease_until DATETIME(3) NOT NULL,
  PRIMARY KEY (name)
) ENGINE=InnoDB;

-- What Zithara last accepted of each order, customer and cart at one destination. A row of another destination counts as
-- absent and is written over. Written with the outcome of a message, in its transaction, by the worker that holds the group.
CREATE TABLE IF NOT EXISTS {prefix}zithara_delivery (
  topic_name        VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  group_key         VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  destination       CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'SHA-256 of base_url and client_id',
  message_id        BIGINT UNSIGNED NOT NULL COMMENT 'queue_message.id of the newest message accepted, 0 where no message is older',
  id_epoch          INT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'zithara_ledger.id_epoch of its time: ids of another one tell no order',
  published_at      DATETIME NOT NULL COMMENT 'when that message was published, or a little later',
  create_id         BIGINT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'of orders: the newest message accepted as a create',
  covers            TEXT CHARACTER SET utf8mb4 NOT NULL COMMENT 'the names that the request told, a line each, of customers only',
  request           CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'SHA-256 of method, path and body, NULL where it is not sure what the CRM holds',
  content           CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'SHA-256 of the state, free of method and shape',
  entity_updated_at DATETIME NULL COMMENT 'of orders: their own updated_at',
  first_accepted_at DATETIME(3) NOT NULL,
  last_accepted_at  DATETIME(3) NOT NULL COMMENT 'when a request was accepted, which unchanged messages do not move',
  confirmed_at      DATETIME(3) NULL COMMENT 'when a message was last accepted, or was unchanged',
  accepted          INT UNSIGNED NOT NULL COMMENT 'how many requests were accepted',
  doubt_until       DATETIME(3) NULL COMMENT 'a request that got no answer may still arrive until then',
  stale             TINYINT(1) NOT NULL DEFAULT 0 COMMENT 'an older message was sent behind a newer one, or completed unsent: reconcile looks at the entity',
  compared_at       DATETIME NULL COMMENT 'the time of the shop''s rows when reconcile last found them equal to content: unchanged rows need no rebuilding',
  refused           CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'SHA-256 of the state that an operator discarded: reconcile does not publish it',
  reconcile_id      BIGINT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'queue_message.id that reconcile published last',
  PRIMARY KEY (topic_name, group_key),
  KEY accepted (topic_name, last_accepted_at),     -- ledger_old
  KEY newest (id_epoch, message_id)                -- ledger_newest, ledger_ended
) ENGINE=InnoDB;

-- How far the rows of zithara_delivery may be believed, a row for each topic.
CREATE TABLE IF NOT EXISTS {prefix}zithara_ledger (
  topic        VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  id_epoch     INT UNSIGNED NOT NULL COMMENT 'raised for all topics when message ids begin again',
  looked_until DATETIME(3) NOT NULL COMMENT 'workers have looked until then which messages others ended',
  sure_since   DATETIME(3) NOT NULL COMMENT 'what was confirmed before does not prove what the CRM holds',
  PRIMARY KEY (topic)
) ENGINE=InnoDB;

-- The last result of each kind that `reconcile` compared: orders, customers, carts.
CREATE TABLE IF NOT EXISTS {prefix}zithara_reconciliation (
  kind        VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  started_at  DATETIME(3) NOT NULL,
  finished_at DATETIME(3) NULL COMMENT 'NULL: it is at work, or was stopped',
  result      MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL COMMENT 'JSON: the window, the counts by class, what was published',
  PRIMARY KEY (kind)
) ENGINE=InnoDB;

-- The messages that a relay moved from RabbitMQ, so that one which RabbitMQ delivers again gets no second row. Rows are removed
-- after 14 days. The body's digest belongs to the key, because older versions of Magento make message ids that two processes share.
CREATE TABLE IF NOT EXISTS {prefix}zithara_relayed (
  queue_name VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'in RabbitMQ',
  message_id VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'the property of that name',
  body       BINARY(32) NOT NULL COMMENT 'SHA-256',
  relayed_at DATETIME(3) NOT NULL,
  PRIMARY KEY (queue_name, message_id, body),
  KEY age (relayed_at)                            -- relayed_forget
) ENGINE=InnoDB;

-- Messages from RabbitMQ that the queue's tables can never hold, in pieces.
CREATE TABLE IF NOT EXISTS {prefix}zithara_relay_aside (
  id          CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'hexadecimal, made by the relay',
  piece       INT UNSIGNED NOT NULL COMMENT 'from 0',
  pieces      INT UNSIGNED NOT NULL COMMENT 'how many there are',
  queue_name  VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  topic_name  VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
  message_id  VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  length      BIGINT UNSIGNED NOT NULL COMMENT 'bytes of the whole body',
  reason_code VARCHAR(64) CHARACTER SET ascii NOT NULL,
  detail      VARCHAR(1000) CHARACTER SET utf8mb4 NOT NULL,
  kept_at     DATETIME(3) NOT NULL,
  content     MEDIUMBLOB NOT NULL,
  PRIMARY KEY (id, piece)
) ENGINE=InnoDB;
