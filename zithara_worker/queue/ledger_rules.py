"""The rules of the delivery ledger: which messages need not be sent. Pure functions of a message, its request and the
row of its entity that the claim has read.

Webhooks are events, not states, and have no row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from zithara_worker.messages import Entity, Known, Message, Outcome, OutcomeKind, Request
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import OVERTAKEN, UNCHANGED
from zithara_worker.settings.sections import ZitharaSettings
from zithara_worker.topics import TOPIC_TABLE

#: Topics whose messages tell the state of an entity.
LEDGER_TOPICS = tuple(name for name, topic in TOPIC_TABLE.items() if topic.entity)


def arrived(outcome: Outcome) -> bool:
    """Whether Zithara has what the message tells: it accepted the request, or the same one before."""
    return outcome.kind is OutcomeKind.DELIVERED or (
        outcome.kind is OutcomeKind.SKIPPED and outcome.reason == UNCHANGED
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is not sent. `unchanged_for`: seconds for which an accepted request need not be repeated; 0: each is sent.

    `digest`: SHA-256 of a request, as `Accepted.request`. `ordered_ids`: see `overtakes`.
    """

    digest: Callable[[Request], str]
    unchanged_for: float
    ordered_ids: bool = True

    def reason_not_to_send(self, message: Message, request: Request) -> str:
        """OVERTAKEN, UNCHANGED, or "" for a message that is to be sent."""
        known, entity = message.known, request.entity
        if known is None or entity is None:
            return ""
        if overtakes(known, message, entity, ordered_ids=self.ordered_ids):
            return OVERTAKEN
        # The digest costs a few microseconds: only where it can be the same.
        # Below 0: the database's clock went back, so nobody knows how long ago it was.
        is_recent = 0 <= known.accepted_ago < self.unchanged_for
        if known.request and is_recent and self.digest(request) == known.request:
            return UNCHANGED
        return ""


def overtakes(known: Known, message: Message, entity: Entity, *, ordered_ids: bool = True) -> bool:
    """Whether what Zithara has accepted is newer than this message, and tells all of it.

    `ordered_ids`: one server gives out all ids, so that within one second they tell which message came first. With
    several writing servers they do not, and a message in doubt is sent: an older state is mended by the next message or
    by reconcile, a lost one by nobody.
    """
    return (
        message.message_id < known.message_id
        # Its worker died with it, and the row no longer tells when it was published: only the ids can.
        and (ordered_ids or not message.suspect)
        and not is_later(message, entity, known, ordered_ids=ordered_ids)
        and covers(known, entity, message.message_id)
    )


def is_later(message: Message, entity: Entity, known: Known, *, ordered_ids: bool) -> bool:
    """Whether a message with a lower id was published later: ids begin again after a restore, and servers of a cluster
    take theirs in turn. What was tried before has another time in its row, so only NEW rows tell."""
    if entity.updated_at and known.entity_updated_at and entity.updated_at != known.entity_updated_at:
        return entity.updated_at > known.entity_updated_at
    if message.status_before != Status.NEW:
        return False
    published_at = message.updated_at_before
    return published_at > known.published_at or (published_at == known.published_at and not ordered_ids)


def covers(known: Known, entity: Entity, message_id: int) -> bool:
    """Whether what was accepted tells everything that this message would: as for coalescing, and a create, which alone
    tells customer and items of an order, is covered by a newer create only."""
    if entity.is_create:
        return known.create_id > message_id
    return not entity.names or set(entity.names.split("\n")) <= set(known.names.split("\n"))


def destination(settings: ZitharaSettings) -> str:
    """SHA-256 that tells one account of one API from any other."""
    return hashlib.sha256(f"{settings.base_url}\0{settings.client_id}".encode()).hexdigest()
