-- Magento's own tables, as far as this program reads or writes them. For the sandbox and the tests only:
-- against a shop nothing of this is ever run.
-- Columns and keys after Magento 2.4: MysqlMq/etc/db_schema.xml (queue, queue_message, queue_message_status),
-- MessageQueue/etc/db_schema.xml (queue_lock, queue_poison_pill), Config/etc/db_schema.xml (core_config_data),
-- and after the module zithara/webhook 1.0.3 (zithara_webhook_config).
-- Magento builds the names of keys from prefix, table and columns; the key on queue_message_status.message_id is
-- the one that InnoDB adds for the foreign key.

CREATE TABLE {prefix}queue (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT,
  name VARCHAR(255) DEFAULT NULL,
  PRIMARY KEY (id),
  UNIQUE KEY {prefix}QUEUE_NAME (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE {prefix}queue_message (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  topic_name VARCHAR(255) DEFAULT NULL,
  body LONGTEXT DEFAULT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE {prefix}queue_message_status (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  queue_id INT UNSIGNED NOT NULL,
  message_id BIGINT UNSIGNED NOT NULL,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  status SMALLINT UNSIGNED NOT NULL,
  number_of_trials SMALLINT UNSIGNED NOT NULL DEFAULT 0,
  PRIMARY KEY (id),
  UNIQUE KEY {prefix}QUEUE_MESSAGE_STATUS_QUEUE_ID_MESSAGE_ID (queue_id, message_id),
  KEY {prefix}QUEUE_MESSAGE_STATUS_STATUS_UPDATED_AT (status, updated_at),
  CONSTRAINT {prefix}QUEUE_MESSAGE_STATUS_MESSAGE_ID_QUEUE_MESSAGE_ID
    FOREIGN KEY (message_id) REFERENCES {prefix}queue_message (id) ON DELETE CASCADE,
  CONSTRAINT {prefix}QUEUE_MESSAGE_STATUS_QUEUE_ID_QUEUE_ID
    FOREIGN KEY (queue_id) REFERENCES {prefix}queue (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE {prefix}queue_lock (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT,
  message_code VARCHAR(255) NOT NULL DEFAULT '',
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  PRIMARY KEY (id),
  UNIQUE KEY {prefix}QUEUE_LOCK_MESSAGE_CODE (message_code)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE {prefix}queue_poison_pill (
  version VARCHAR(255) NOT NULL,
  PRIMARY KEY (version)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE {prefix}core_config_data (
  config_id INT UNSIGNED NOT NULL AUTO_INCREMENT,
  scope VARCHAR(8) NOT NULL DEFAULT 'default',
  scope_id INT NOT NULL DEFAULT 0,
  path VARCHAR(255) NOT NULL DEFAULT 'general',
  value TEXT DEFAULT NULL,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  PRIMARY KEY (config_id),
  UNIQUE KEY {prefix}CORE_CONFIG_DATA_SCOPE_SCOPE_ID_PATH (scope, scope_id, path)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE {prefix}zithara_webhook_config (
  config_id INT UNSIGNED NOT NULL AUTO_INCREMENT,
  webhook_url VARCHAR(255) DEFAULT NULL,
  event_types TEXT NOT NULL,
  client_id VARCHAR(255) DEFAULT NULL,
  client_secret VARCHAR(255) DEFAULT NULL,
  access_token TEXT DEFAULT NULL,
  refresh_token TEXT DEFAULT NULL,
  token_expiry TIMESTAMP NULL DEFAULT NULL,
  is_active TINYINT(1) NOT NULL DEFAULT 1,
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  PRIMARY KEY (config_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Quote/etc/db_schema.xml, the columns that are read.
CREATE TABLE {prefix}quote (
  entity_id INT UNSIGNED NOT NULL AUTO_INCREMENT,
  is_active SMALLINT UNSIGNED DEFAULT 1,
  PRIMARY KEY (entity_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
