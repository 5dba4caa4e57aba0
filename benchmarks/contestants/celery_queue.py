"""Celery with its SQLAlchemy transport on the same server, threads.

Arguments: file of requests, base URL, token, threads, socket, database.
It gives no order within an entity.
"""

from __future__ import annotations

import os
import signal
import sys

from celery import Celery
from kombu.transport.sqlalchemy import Transport

from benchmarks.contestants import ready
from benchmarks.contestants.poster import Poster, requests_of


def main() -> None:
    file, base_url, token, threads, socket, name = sys.argv[1:]
    app = Celery("bench", broker=f"sqla+mysql+pymysql://root@localhost/{name}?unix_socket={socket}&charset=utf8mb4")
    # Its own second between two looks at an empty queue would be all that is measured; no option sets it.
    Transport.polling_interval = 0.05
    app.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=2,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    waiting = list(requests_of(file))
    poster = Poster(base_url, token, expected=len(waiting), when_done=lambda: os.kill(os.getpid(), signal.SIGTERM))

    @app.task(name="post")
    def task(method: str, path: str, body: str) -> None:
        poster.post(method, path, body)

    with app.connection_for_write() as connection, connection.Producer() as producer:
        for request in waiting:
            task.apply_async(request, producer=producer)
    ready()
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={threads}",
            "--loglevel=ERROR",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )


if __name__ == "__main__":
    main()
