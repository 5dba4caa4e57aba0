"""The physical limit of the other side: claim and settle with the worker's own queue, and no HTTP.

Arguments: the worker's configuration file, messages.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks import messages
from benchmarks.contestants import ready
from zithara_worker.database.session import Database
from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.processors import identify
from zithara_worker.queue.held import Held
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import find_queues
from zithara_worker.queue.settle import Settlement
from zithara_worker.shop.configuration import configure

_DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200)


def main() -> None:
    settings = configure(Path(sys.argv[1]), {}, os.environ).settings
    wanted = int(sys.argv[2])
    ready()
    database = Database(settings.database)
    [row] = find_queues(database, [messages.TOPIC], {})
    queue = MessageQueue(
        database,
        queue_id=row.queue_id,
        name=row.name,
        topic=row.topic,
        held=Held(worker_id="raw-queue", lease_seconds=settings.worker.lease, clock=time.monotonic),
        identify=identify,
    )
    started = time.monotonic()
    done = 0
    while done < wanted:
        claimed = queue.claim(settings.worker.batch_size)
        if not claimed:
            raise RuntimeError(f"nothing to claim after {done} of {wanted} messages")
        queue.settle([Settlement(message=message, outcome=_DELIVERED) for message, _ in claimed])
        done += len(claimed)
    print(json.dumps({"seconds": time.monotonic() - started, "no_http": True}))
    database.close()


if __name__ == "__main__":
    main()
