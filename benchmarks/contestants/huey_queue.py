"""huey with its SQL storage on the same server, threads.

Arguments: file of requests, base URL, token, threads, socket, database.
It gives no order within an entity, and what a worker that dies has taken is lost.
"""

from __future__ import annotations

import os
import signal
import sys

from huey.contrib.sql_huey import SqlHuey
from peewee import MySQLDatabase

from benchmarks.contestants import ready
from benchmarks.contestants.poster import Poster, requests_of


def main() -> None:
    file, base_url, token, threads, socket, name = sys.argv[1:]
    database = MySQLDatabase(name, unix_socket=socket, user="root", password="", charset="utf8mb4")
    # results=False: what a task returns is not stored, as nobody asks for it.
    huey = SqlHuey("bench", database=database, results=False)
    waiting = list(requests_of(file))
    poster = Poster(base_url, token, expected=len(waiting), when_done=lambda: os.kill(os.getpid(), signal.SIGINT))
    task = huey.task()(poster.post)
    for request in waiting:
        task(*request)
    database.close()
    consumer = huey.create_consumer(
        workers=int(threads), worker_type="thread", initial_delay=0.01, max_delay=0.1, periodic=False
    )
    ready()
    consumer.run()


if __name__ == "__main__":
    main()
