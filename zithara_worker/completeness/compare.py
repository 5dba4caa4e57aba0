"""Compares entities of the shop with what Zithara accepted of them: one verdict each.

Content decides: the request that the shop's rows make is compared with the digest of what was accepted last. Times only
tell which rows need no rebuilding.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, cast

from zithara_worker.completeness.pending import PendingMessages
from zithara_worker.database.session import Database
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.messages import Entity, Event, Rejection, Request, Skip
from zithara_worker.queue.ledger import DOUBT_SECONDS
from zithara_worker.queue.queues import stored_body
from zithara_worker.reasons import INTERNAL_ERROR
from zithara_worker.shop.entities import EntityReader, Rebuilt, ShopEntity, TooManyParts
from zithara_worker.zithara.api import content_digest

log = logging.getLogger(__name__)

#: Seconds for which an entity must not have changed before it is judged: its message may be on its way.
SETTLED_SECONDS = 900


class Verdict(Enum):
    """What became of an entity of the shop, in the order in which people are told."""

    #: Zithara has accepted its latest state
    COMPLETE = "complete"
    #: A message of it is on the queue
    WAITING = "waiting"
    #: Nothing of it was ever accepted
    MISSING = "missing"
    #: Something else was accepted last
    STALE = "stale"
    #: Its newest message is in ERROR
    FAILED = "failed"
    #: An operator discarded its present content
    REFUSED = "refused"
    #: Several stores have an order of this number
    AMBIGUOUS = "ambiguous"
    #: It makes no valid message
    INVALID = "invalid"
    #: It has changed within the last 15 minutes, or a request of it may still arrive
    UNSETTLED = "unsettled"


#: What `--publish` publishes.
PUBLISHABLE = frozenset({Verdict.MISSING, Verdict.STALE})

Process = Callable[[Event], Request | Skip | Rejection]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An entity and its verdict. `payload`: the message to publish, of those that may be published. `reason`: a code of
    `reasons`, why it makes no valid message."""

    entity: ShopEntity
    verdict: Verdict
    payload: Mapping[str, Any] | None = None
    reason: str = ""

    @property
    def body(self) -> str:
        """The message as Magento stores it."""
        return stored_body(json.dumps(self.payload, separators=(",", ":")))


class _Known(NamedTuple):
    """A row of zithara_delivery. `is_here`: Zithara has accepted something of it at this account. `in_doubt`: a request
    may still arrive. `is_sure`: nothing has put in doubt since then what the CRM holds, such as a delivery by PHP."""

    is_here: bool
    message_id: int
    create_id: int
    content: str
    stale: bool
    compared_at: str
    refused: str
    in_doubt: bool
    is_sure: bool
    last_accepted_at: float
    #: When the message that was accepted last was published, or a little later
    published_at: str


_NOTHING = _Known(False, 0, 0, "", False, "", "", False, True, 0.0, "")


class Comparison:
    """Judges the entities of one kind.

    `destination`: of this account, see `ledger_rules.destination`. `process`: the request that a message becomes.
    """

    def __init__(
        self,
        database: Database,
        reader: EntityReader,
        *,
        queue_id: int,
        destination: str,
        process: Process,
        pending: PendingMessages,
    ) -> None:
        self._database = database
        self._reader = reader
        self._queue_id = queue_id
        self._destination = destination
        self._process = process
        self._pending = pending

    def judge(
        self, entities: Sequence[ShopEntity], *, settled_before: str, resend_since: float | None = None
    ) -> Iterator[Judged]:
        """One verdict for each entity that is still there. Those that may be published come in the order of `entities`,
        and so many at once in memory as `shop.entities.PARTS` allows.

        `settled_before`: what changed at this time or later is not judged. `resend_since`: everything that Zithara has
        not accepted since then counts as stale, whatever its content, and is published as a create.
        """
        settled = []
        for entity in entities:
            if entity.updated_at < settled_before:
                settled.append(entity)
            else:
                yield Judged(entity=entity, verdict=Verdict.UNSETTLED)
        known = self._known([entity.group_key for entity in settled])
        to_build = []
        for entity in settled:
            row = known.get(entity.group_key, _NOTHING)
            # Nothing has changed on either side since both were found equal.
            if resend_since is None and _is_sure(row) and not row.stale and row.compared_at == entity.updated_at:
                yield Judged(entity=entity, verdict=Verdict.COMPLETE)
            else:
                to_build.append(entity)
        size = len(to_build)
        while to_build:
            try:
                built = self._build([entity.id for entity in to_build[:size]])
            except TooManyParts:
                size = (size + 1) // 2
                continue
            yield from self._judge_built(to_build[:size], built, known, resend_since)
            to_build = to_build[size:]

    # ---------------------------------------------------------------- by content

    def _judge_built(
        self,
        entities: Sequence[ShopEntity],
        built: Mapping[int, Rebuilt | str],
        known: Mapping[str, _Known],
        resend_since: float | None,
    ) -> list[Judged]:
        several = self._reader.ambiguous([entity.label for entity in entities])
        equal: list[tuple[str, str, str]] = []
        judged: list[Judged] = []
        different: list[tuple[ShopEntity, Mapping[str, Any]]] = []
        for entity in entities:
            rebuilt = built.get(entity.id)
            row = known.get(entity.group_key, _NOTHING)
            if rebuilt is None:
                continue  # gone since the page was read
            if isinstance(rebuilt, str):
                judged.append(Judged(entity=entity, verdict=Verdict.INVALID, reason=rebuilt))
                continue
            # Behind an older message that came late, only one that tells all shows what Zithara has.
            forms = (rebuilt.payload,) if row.stale else rebuilt.forms(row.published_at)
            reason, digests = self._digests(forms)
            if entity.label in several:
                judged.append(Judged(entity=entity, verdict=Verdict.AMBIGUOUS))
            elif reason:
                judged.append(Judged(entity=entity, verdict=Verdict.INVALID, reason=reason))
            elif row.is_here and row.content in digests and row.last_accepted_at >= (resend_since or 0.0):
                if row.in_doubt:
                    judged.append(Judged(entity=entity, verdict=Verdict.UNSETTLED))
                elif not row.is_sure:
                    different.append((entity, rebuilt.payload))
                else:
                    judged.append(Judged(entity=entity, verdict=Verdict.COMPLETE))
                    equal.append((entity.group_key, row.content, entity.updated_at))
            elif row.refused and row.refused in self._digests((rebuilt.payload, *rebuilt.also))[1]:
                judged.append(Judged(entity=entity, verdict=Verdict.REFUSED))
            else:
                different.append((entity, rebuilt.payload))
        if equal:
            self._database.insert_rows("reconcile_compared", sorted(equal), topic=self._reader.topic)
        return judged + (self._judge_different(different, known, resend_since) if different else [])

    def _judge_different(
        self,
        entities: Sequence[tuple[ShopEntity, Mapping[str, Any]]],
        known: Mapping[str, _Known],
        resend_since: float | None,
    ) -> list[Judged]:
        """Those of which Zithara has not accepted the present content."""
        ids = [entity.id for entity, _ in entities]
        now = self._reader.times(ids)
        failed = self._failed([entity.group_key for entity, _ in entities])
        judged = []
        for entity, payload in entities:
            row = known.get(entity.group_key, _NOTHING)
            verdict = self._verdict(entity, row, now, failed, resend=resend_since is not None)
            if verdict not in PUBLISHABLE:
                judged.append(Judged(entity=entity, verdict=verdict))
                continue
            if row.create_id and "is_update" in payload and resend_since is None:
                # Zithara has the order's customer and items: an update tells the rest.
                payload = {**payload, "is_update": True}
            judged.append(Judged(entity=entity, verdict=verdict, payload=payload))
        return judged

    def _verdict(
        self,
        entity: ShopEntity,
        row: _Known,
        now: Mapping[int, str],
        failed: Mapping[str, int],
        *,
        resend: bool,
    ) -> Verdict:
        if now.get(entity.id) != entity.updated_at:
            return Verdict.UNSETTLED  # it has changed while it was read
        newest_failed = failed.get(entity.group_key, 0)
        # One that was pending when the queue was read may be in ERROR by now.
        if self._pending.newest(entity.group_key) > newest_failed:
            return Verdict.WAITING
        if newest_failed > (row.message_id if row.is_here else 0) and not resend:
            return Verdict.FAILED
        return Verdict.STALE if row.is_here else Verdict.MISSING

    def _digests(self, forms: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[str, ...]]:
        """Why the entity makes no valid message, or ""; the contents of these messages about it."""
        digests: list[str] = []
        for number, payload in enumerate(forms):
            reason = INTERNAL_ERROR
            try:
                request = self._process(Event(topic=self._reader.topic, payload=payload))
                if isinstance(request, Request):
                    digests.append(content_digest(cast(Entity, request.entity)))
                    continue
                reason = request.code if isinstance(request, Rejection) else request.reason
            except Exception:
                # One entity must not keep the others from being judged.
                log.exception("reconcile: a message cannot be processed", extra={"event": "internal_error"})
            if number == 0:
                return reason, ()
        return "", tuple(digests)

    # ---------------------------------------------------------------- what the tables say

    def _build(self, ids: Sequence[int]) -> dict[int, Rebuilt | str]:
        """The entities' messages, or a reason code where one cannot be built."""
        try:
            return {**self._reader.build(ids)}
        except ZitharaWorkerError:
            raise
        except Exception:
            if len(ids) == 1:
                log.exception(
                    "reconcile: a message cannot be built",
                    extra={"event": "internal_error", "kind": self._reader.kind, "entity_id": ids[0]},
                )
                return {ids[0]: INTERNAL_ERROR}
        found: dict[int, Rebuilt | str] = {}
        for id in ids:
            found |= self._build([id])
        return found

    def _known(self, group_keys: Collection[str]) -> dict[str, _Known]:
        if not group_keys:
            return {}
        rows = self._database.rows(
            "reconcile_ledger",
            topic=self._reader.topic,
            group_keys=sorted(group_keys),
            destination=self._destination,
            doubt_seconds=DOUBT_SECONDS,
        )
        return {
            row["group_key"]: _Known(
                is_here=bool(row["is_here"]),
                message_id=row["message_id"],
                create_id=row["create_id"] if row["is_here"] else 0,
                content=row["content"] or "",
                stale=bool(row["stale"]),
                compared_at=row["compared_at"] or "",
                refused=row["refused"] or "",
                in_doubt=bool(row["in_doubt"]),
                is_sure=bool(row["is_sure"]),
                last_accepted_at=float(row["last_accepted_at"]),
                published_at=row["published_at"],
            )
            for row in rows
        }

    def _failed(self, group_keys: Collection[str]) -> dict[str, int]:
        """Group -> its newest message in ERROR."""
        rows = self._database.rows("reconcile_failures", queue_id=self._queue_id, group_keys=sorted(group_keys))
        return {row["group_key"]: int(row["message_id"]) for row in rows}


def _is_sure(row: _Known) -> bool:
    return row.is_here and bool(row.content) and row.is_sure and not row.in_doubt
