-- From schema 3 to schema 4, in place and while workers of both versions run: those of version 0.3 go on with schema 4.
-- The notation: see upgrade_2.sql.

-- zithara_worker.role --
ALTER TABLE {prefix}zithara_worker
  ADD COLUMN role VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'consume' COMMENT 'consume or relay' AFTER pid;

-- zithara_delivery.compared_at --
ALTER TABLE {prefix}zithara_delivery
  ADD COLUMN compared_at DATETIME NULL
  COMMENT 'the time of the shop''s rows when reconcile last found them equal to content: unchanged rows need no rebuilding' AFTER stale;

-- zithara_delivery.refused --
ALTER TABLE {prefix}zithara_delivery
  ADD COLUMN refused CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL
  COMMENT 'SHA-256 of the state that an operator discarded: reconcile does not publish it' AFTER compared_at;

-- zithara_delivery.reconcile_id --
ALTER TABLE {prefix}zithara_delivery
  ADD COLUMN reconcile_id BIGINT UNSIGNED NOT NULL DEFAULT 0
  COMMENT 'queue_message.id that reconcile published last' AFTER refused;

-- zithara_delivery.id_epoch --
ALTER TABLE {prefix}zithara_delivery
  ADD COLUMN id_epoch INT UNSIGNED NOT NULL DEFAULT 0
  COMMENT 'zithara_ledger.id_epoch of its time: ids of another one tell no order' AFTER message_id;

-- zithara_delivery.newest --
ALTER TABLE {prefix}zithara_delivery DROP KEY newest, ADD KEY newest (id_epoch, message_id);

-- zithara_delivery.confirmed_at --
ALTER TABLE {prefix}zithara_delivery
  ADD COLUMN confirmed_at DATETIME(3) NULL COMMENT 'when a message was last accepted, or was unchanged' AFTER last_accepted_at;

-- zithara_ledger --
CREATE TABLE IF NOT EXISTS {prefix}zithara_ledger (
  topic        VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  id_epoch     INT UNSIGNED NOT NULL COMMENT 'raised for all topics when message ids begin again',
  looked_until DATETIME(3) NOT NULL COMMENT 'workers have looked until then which messages others ended',
  sure_since   DATETIME(3) NOT NULL COMMENT 'what was confirmed before does not prove what the CRM holds',
  PRIMARY KEY (topic)
) ENGINE=InnoDB;

-- zithara_reconciliation --
CREATE TABLE IF NOT EXISTS {prefix}zithara_reconciliation (
  kind        VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  started_at  DATETIME(3) NOT NULL,
  finished_at DATETIME(3) NULL COMMENT 'NULL: it is at work, or was stopped',
  result      MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL COMMENT 'JSON: the window, the counts by class, what was published',
  PRIMARY KEY (kind)
) ENGINE=InnoDB;

-- zithara_relayed --
CREATE TABLE IF NOT EXISTS {prefix}zithara_relayed (
  queue_name VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'in RabbitMQ',
  message_id VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'the property of that name',
  body       BINARY(32) NOT NULL COMMENT 'SHA-256',
  relayed_at DATETIME(3) NOT NULL,
  PRIMARY KEY (queue_name, message_id, body),
  KEY age (relayed_at)                            -- relayed_forget
) ENGINE=InnoDB;

-- zithara_relay_aside --
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

-- zithara_message_group --
ALTER TABLE {prefix}zithara_message_group COMMENT='zithara-worker schema 4';
