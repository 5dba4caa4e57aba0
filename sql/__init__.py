"""The SQL files, importable as resources: `setup.cfg` maps this folder to the package `zithara_worker.sql`."""
