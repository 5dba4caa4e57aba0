"""The delivery ledger: what Zithara last accepted of each order, customer and cart.

`Ledger` reads rows within the transaction of a claim and writes them within that of a settle: whoever holds the group
is the only one who writes. What the rows mean for a message: `ledger_rules`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from zithara_worker.database.session import Database
from zithara_worker.messages import Known, Message, Outcome
from zithara_worker.queue.ledger_rules import is_later
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import OVERTAKEN, UNCHANGED

#: Seconds for which a request without an answer may still arrive: it may wait in a gateway, or with a worker that was
#: stopped. Until then an acceptance does not prove what the CRM holds in the end.
DOUBT_SECONDS = 600


class Ended(NamedTuple):
    """A message that has ended or failed, and nobody knows by whom. `ended_at`: whole seconds since the epoch by the
    database's clock, 0 where that is not known."""

    group_key: str
    message_id: int
    ended_at: float


class Ledger:
    """The rows of one topic at one destination. Its methods run within a transaction of the caller.

    `destination`: see `ledger_rules.destination`; a row of another one counts as absent.
    """

    def __init__(self, database: Database, *, topic: str, destination: str) -> None:
        self._database = database
        self._topic = topic
        self._destination = destination
        #: As the last claim read it; see zithara_ledger.id_epoch
        self._epoch = 0

    # ---------------------------------------------------------------- claim

    def read(self, group_keys: Collection[str]) -> Mapping[str, Known]:
        """What is known of these entities, by group."""
        if not group_keys:
            return {}
        rows = self._database.rows(
            "ledger_read", topic=self._topic, group_keys=sorted(group_keys), destination=self._destination
        )
        if rows:
            self._epoch = int(rows[0]["id_epoch"])
        return {
            row["group_key"]: Known(
                message_id=int(row["message_id"]),
                published_at=str(row["published_at"]),
                create_id=int(row["create_id"]),
                names=str(row["covers"]),
                request=str(row["request"] or ""),
                entity_updated_at=str(row["entity_updated_at"] or ""),
                accepted_ago=float(row["accepted_ago"]),
            )
            for row in rows
            if row["group_key"] is not None
        }

    def doubt(self, group_keys: Collection[str]) -> None:
        """A request of these entities may still arrive, or an operator wants one to be sent."""
        if group_keys:
            rows = [(group_key,) for group_key in sorted(group_keys)]
            self._database.insert_rows("ledger_doubt", rows, topic=self._topic, seconds=DOUBT_SECONDS)

    def doubt_what_others_ended(self, ended: Collection[Ended], *, queue_id: int, held: bool) -> None:
        """Others ended these messages, unless a worker recorded it: what they told may have gone over what is recorded.

        `held`: a message that a worker holds now is not ended at all.
        """
        if not ended:
            return
        keys = sorted({each.group_key for each in ended})
        rows = self._database.rows("ledger_confirmed", topic=self._topic, group_keys=keys, queue_id=queue_id)
        confirmed = {row["group_key"]: row for row in rows if not (held and row["is_held"])}
        self.doubt(
            {
                each.group_key
                for each in ended
                if (row := confirmed.get(each.group_key))
                and (each.message_id > int(row["message_id"]) or each.ended_at > float(row["confirmed_at"]))
            }
        )

    # ---------------------------------------------------------------- settle

    def write(self, outcomes: Sequence[tuple[Message, Outcome]]) -> list[Message]:
        """Writes what became of these messages. Returns those that cannot complete as unchanged, since an operator has
        asked for the entity to be sent since the claim."""
        by_group = {message.group_key: (message, outcome) for message, outcome in outcomes}
        unchanged = [message for message, outcome in outcomes if outcome.reason == UNCHANGED]
        asked_for = self._unchanged(unchanged) if unchanged else []
        self._record([each for each in outcomes if each[1].accepted is not None])
        self.doubt([group for group, (_, outcome) in by_group.items() if outcome.may_arrive])
        for message, outcome in outcomes:
            known = message.known
            if known is not None and message.message_id < known.message_id and outcome.may_arrive:
                self._database.execute(
                    "ledger_allow", topic=self._topic, group_key=message.group_key, message_id=message.message_id
                )
        late = [
            message.group_key
            for message, outcome in outcomes
            if outcome.reason == OVERTAKEN and (message.status_before == Status.NEW or message.suspect)
        ]
        if late:
            # It became visible behind a newer one: its transaction may have committed the newer state all the same. Or
            # its worker died with it, and may have sent it.
            self._database.execute("ledger_stale", topic=self._topic, group_keys=sorted(late))
        return asked_for

    def _unchanged(self, messages: Sequence[Message]) -> list[Message]:
        rows = self._database.rows(
            "ledger_lock",
            topic=self._topic,
            group_keys=sorted(message.group_key for message in messages),
            destination=self._destination,
        )
        found = {row["group_key"]: str(row["request"] or "") for row in rows}
        same = [each for each in messages if each.known and found.get(each.group_key) == each.known.request]
        if same:
            self._database.insert_rows(
                "ledger_unchanged",
                sorted((each.group_key, each.message_id, each.updated_at_before) for each in same),
                topic=self._topic,
                destination=self._destination,
                epoch=self._epoch,
            )
        return [each for each in messages if each not in same]

    def _record(self, accepted: Sequence[tuple[Message, Outcome]]) -> None:
        rows = []
        for message, outcome in sorted(accepted, key=lambda each: each[0].group_key):
            news, known = outcome.accepted, message.known
            if news is None:
                continue
            create_id = message.message_id if news.entity.is_create else 0
            if (
                known is not None
                and message.message_id < known.message_id
                # Published later in spite of its lower id, it has the newer state. Within a second nobody can tell.
                and not is_later(message, news.entity, known, ordered_ids=True)
            ):
                self._database.execute(
                    "ledger_record_older",
                    topic=self._topic,
                    group_key=message.group_key,
                    destination=self._destination,
                    create_id=create_id,
                )
                continue
            rows.append(
                (
                    message.group_key,
                    message.message_id,
                    message.updated_at_before,
                    create_id,
                    news.entity.names,
                    news.request,
                    news.content,
                    news.entity.updated_at or None,
                )
            )
        if rows:
            self._database.insert_rows(
                "ledger_record", rows, topic=self._topic, destination=self._destination, epoch=self._epoch
            )
