-- From schema 2 to schema 3, in place and while workers of both versions run: those of version 0.2 go on with schema 3.
-- The notation: see upgrade_2.sql.

-- zithara_delivery --
CREATE TABLE IF NOT EXISTS {prefix}zithara_delivery (
  topic_name        VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  group_key         VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  destination       CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'SHA-256 of base_url and client_id',
  message_id        BIGINT UNSIGNED NOT NULL COMMENT 'queue_message.id of the newest message accepted, 0 where no message is older',
  published_at      DATETIME NOT NULL COMMENT 'when that message was published, or a little later',
  create_id         BIGINT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'of orders: the newest message accepted as a create',
  covers            TEXT CHARACTER SET utf8mb4 NOT NULL COMMENT 'the names that the request told, a line each, of customers only',
  request           CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'SHA-256 of method, path and body, NULL where it is not sure what the CRM holds',
  content           CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'SHA-256 of the state, free of method and shape',
  entity_updated_at DATETIME NULL COMMENT 'of orders: their own updated_at',
  first_accepted_at DATETIME(3) NOT NULL,
  last_accepted_at  DATETIME(3) NOT NULL COMMENT 'when a request was accepted, which unchanged messages do not move',
  accepted          INT UNSIGNED NOT NULL COMMENT 'how many requests were accepted',
  doubt_until       DATETIME(3) NULL COMMENT 'a request that got no answer may still arrive until then',
  stale             TINYINT(1) NOT NULL DEFAULT 0 COMMENT 'an older message was sent behind a newer one, or completed unsent: reconcile looks at the entity',
  PRIMARY KEY (topic_name, group_key),
  KEY newest (message_id),                         -- ledger_newest
  KEY accepted (topic_name, last_accepted_at)      -- ledger_old
) ENGINE=InnoDB;

-- zithara_message_group --
ALTER TABLE {prefix}zithara_message_group COMMENT='zithara-worker schema 3';
