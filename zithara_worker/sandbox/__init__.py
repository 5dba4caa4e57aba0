"""Everything the worker needs around it, made on this machine: a database server, a shop's queue, the Zithara API.

The database is a real MariaDB or MySQL, the API real HTTP; only what answers is ours. Tests, demo and benchmarks share
it, and `zithara-worker sandbox` lets an operator try everything with no shop.

    mariadb       a private server          shop          Magento's tables, settings and cron in one database of it
    publisher     Magento's publishing      php_consumer  Magento's consuming, statement by statement
    api           the Zithara API           session       all of it together, with a configuration file for the worker
    examples      sample payloads           fixtures      recorded messages, and what must become of each
    demo          the whole path, told
"""
