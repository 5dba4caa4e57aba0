"""Publishing by hand: for operators, tests and demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from zithara_worker.database.session import Database
from zithara_worker.queue.queues import find_queues, put_message, stored_body


def publish_all(database: Database, topic: str, texts: Iterable[str], overrides: Mapping[str, str]) -> Iterator[int]:
    """Stores each text as the module would have published it; yields the message ids, each once it is committed."""
    (queue,) = find_queues(database, [topic], overrides)
    for text in texts:
        yield put_message(database, topic=topic, queue_id=queue.queue_id, body=stored_body(text))
