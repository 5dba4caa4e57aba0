"""The surroundings of a worker, created on this machine: a database server, a shop's queue, the Zithara API.

The database is a real MariaDB or MySQL server, the API speaks real HTTP; only its answers are simulated. Tests, demo
and benchmarks share the sandbox, and `zithara-worker sandbox` lets an operator try every command without a shop.

    mariadb       a private server          shop          Magento's tables, settings and cron in one database of it
    publisher     publishes like Magento    php_consumer  consumes like Magento, statement by statement
    api           the Zithara API           session       all of them together, and a configuration file for the worker
    examples      sample payloads           fixtures      recorded messages, and the required outcome of each
    rabbitmq      a private RabbitMQ, and the shop's queues in it
    tcp_proxy     a network that fails      demo          a shop on a bad day, with workers killed
    verdict       what became of every message
    private_server  the life of both servers
"""
