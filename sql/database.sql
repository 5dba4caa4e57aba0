-- What the session itself asks of the server, the worker's schema, and rows that one process of the fleet holds at a time.
-- The notation, and the state of every session: see queue.sql.

-- ============================== what is there ==============================

-- server --
SELECT VERSION() AS version, @@max_allowed_packet AS max_allowed_packet

-- indexes_of_status --
-- Names of the indexes are Magento's or the administrator's business; we go by their columns.
SELECT index_name AS name, GROUP_CONCAT(column_name ORDER BY seq_in_index) AS column_names
FROM information_schema.statistics
WHERE table_schema = DATABASE() AND table_name = %(table)s
GROUP BY index_name

-- cipher --
SHOW SESSION STATUS WHERE Variable_name = 'Ssl_cipher'

-- tables_present --
SELECT table_name AS name, engine AS engine, table_comment AS comment FROM information_schema.tables
WHERE table_schema = DATABASE() AND table_name IN %(tables)s

-- column_present --
SELECT column_name AS name FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = %(table)s AND column_name = %(column)s

-- ============================== what one process of the fleet may do at a time ==============================

-- lock_take --
-- Locks one row of ours, by its primary key, and only within this statement; so do the two below.
INSERT IGNORE INTO {prefix}zithara_lock (name, owner, lease_until)
VALUES (%(name)s, %(owner)s, NOW(3) + INTERVAL %(lease_us)s MICROSECOND)

-- lock_take_over --
UPDATE {prefix}zithara_lock SET owner = %(owner)s, lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND
WHERE name = %(name)s AND (owner = %(owner)s OR lease_until < NOW(3))

-- lock_free --
DELETE FROM {prefix}zithara_lock WHERE name = %(name)s AND owner = %(owner)s
