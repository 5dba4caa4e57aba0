"""What others delivered: PHP consumers, and workers of a version without a ledger. They record nothing, so what Zithara
accepted before proves no more what it holds.

Others leave a trace only in Magento's rows: a message has ended or failed, and no worker recorded it. Workers look at
all that happened since the last look, also while none of them ran, a stretch of time at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zithara_worker.database.session import Database
from zithara_worker.messages import Pending
from zithara_worker.processors import identify
from zithara_worker.queue.bodies import BODIES_A_STATEMENT, READ_BYTES, Bodies
from zithara_worker.queue.ledger import Ended, Ledger
from zithara_worker.queue.ledger_upkeep import begin

#: Seconds from one look of the fleet to the next.
INTERVAL = 5.0
#: Seconds of the last look that each look covers again: a transaction commits later than the time that it writes.
OVERLAP = 5.0
#: Seconds without a look after which what was confirmed before counts as unsure altogether: by then Magento may have
#: deleted messages, and by default an entity is sent again in any case.
TOO_LONG = 86_400.0
#: Seconds behind which nothing is believed.
BEHIND = 60.0
#: The first stretch of a long time, in seconds, and the longest, where little happened.
STRETCH = 60.0
LONGEST_STRETCH = 600.0
#: Seconds after which a look goes on with another turn, and of a statement after which a shorter stretch follows: well
#: above the way to a distant server and back, which a shorter stretch does not shorten.
LOOK_SECONDS = 0.1
STATEMENT_SECONDS = 0.2


class Others:
    """Looks for one worker. Not thread-safe. `topics`: those with a ledger, by queue id. `clock`: seconds."""

    def __init__(self, database: Database, topics: Mapping[int, str], *, clock: Callable[[], float]) -> None:
        self._database = database
        self._topics = topics
        self._clock = clock
        self._bodies = Bodies(database, identify=identify, outline=None)
        self._ledgers = {queue: Ledger(database, topic=topic, destination="") for queue, topic in topics.items()}
        #: Up to when messages were found, by the database's clock; None: no look is under way
        self._up_to: float | None = None
        self._stretch = STRETCH
        #: What was found there and is not looked at yet: message, queue id, when it ended
        self._found: list[tuple[Pending, int, float]] = []
        #: Whether everything has been looked at once
        self._complete = False
        #: Whether what is recorded may be compared: nothing that happened before the last minute is unknown
        self.up_to_date = False

    def look(self) -> bool:
        """Looks on for LOOK_SECONDS at most; whether the look is complete. Raises DatabaseUnavailable."""
        topics = sorted(set(self._topics.values()))
        rows = self._database.rows("ledger_looked", topics=topics)
        if len(rows) < len(topics):
            begin(self._database)
            rows = self._database.rows("ledger_looked", topics=topics)
        now, epoch = float(rows[0]["now"]), int(rows[0]["id_epoch"])
        since = min(float(row["looked_until"]) for row in rows)
        if self._up_to is None:
            if self._complete and 0 <= now - since < INTERVAL:
                return True  # Another worker has looked.
            if since < now - TOO_LONG or not self._database.has_status_index:
                return self._do_without(topics, now, since)
            self._stretch = STRETCH
        began = self._clock()
        # A clock that went back must not hide what happens now.
        self._up_to = max(self._up_to or 0.0, min(now, since) - OVERLAP)
        while self._up_to < now or self._found:
            if self._found:
                self._identify()
            else:
                self._up_to = self._find(self._up_to, now, epoch)
            if not self._found:
                self._database.execute("ledger_looked_until", topics=topics, up_to=self._up_to)
            if self._clock() - began > LOOK_SECONDS:
                break
        else:
            self._up_to, self._complete, self.up_to_date = None, True, True
            return True
        self.up_to_date = self._complete and now - self._up_to < BEHIND
        return False

    def _do_without(self, topics: list[str], now: float, since: float) -> bool:
        """There is too much to look at, or no index to do it by."""
        if self._complete and now - since < BEHIND:
            self._database.execute("ledger_looked_until", topics=topics, up_to=now)
        else:
            self._database.execute("ledger_unsure", topics=topics)
        self._complete = self.up_to_date = True
        return True

    def _find(self, after: float, now: float, epoch: int) -> float:
        """Finds what ended in the next stretch; up to when that is."""
        stretch = self._stretch
        up_to = now if now - after <= stretch + OVERLAP else after + stretch
        # In case that the server gives the statement up.
        self._stretch = max(1.0, stretch / 4)
        began = self._clock()
        rows = self._database.rows(
            "ledger_ended", after=after, up_to=up_to, epoch=epoch, queue_ids=sorted(self._topics)
        )
        slow = self._clock() - began > STATEMENT_SECONDS
        self._stretch = max(1.0, stretch / 2) if slow else min(stretch * 2, LONGEST_STRETCH)
        self._found = [(Pending.from_row(row), int(row["queue_id"]), float(row["ended_at"])) for row in rows]
        return up_to

    def _identify(self) -> None:
        """Reads the next bodies, which tell the entities."""
        part = self._found[:BODIES_A_STATEMENT]
        done = self._bodies.read_ahead([message for message, _, _ in part], READ_BYTES)
        ended: dict[int, list[Ended]] = {}
        for message, queue_id, at in part[:done]:
            body = self._bodies.decoded.get(message.message_id)
            if body is not None:
                ended.setdefault(queue_id, []).append(Ended(body.group, message.message_id, at))
        self._bodies.decoded.clear()
        for queue_id, messages in ended.items():
            self._ledgers[queue_id].doubt_what_others_ended(messages, queue_id=queue_id, held=False)
        del self._found[:done]
