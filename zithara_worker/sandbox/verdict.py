"""What became of every message, judged by the database's rows and the API's record, not by what a worker says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.api import RecordedRequest
from zithara_worker.sandbox.fixtures import Fate, FixtureMessage
from zithara_worker.sandbox.shop import MessageRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The outcome of one recorded message."""

    message: FixtureMessage
    row: MessageRow
    requests: tuple[RecordedRequest, ...]
    #: The recorded reason of an ERROR
    reason: str

    @property
    def fate(self) -> Fate | None:
        """None if the message is not finished, was sent more than once, or was sent and failed."""
        return _fate(self.row, self.requests) if len(self.requests) <= 1 else None

    @property
    def complaint(self) -> str | None:
        """How the outcome differs from the required one; None if it does not."""
        if self.fate is None or not self.message.fate.allows(self.fate):
            actual = self.fate.value if self.fate else f"status {self.row.status} after {len(self.requests)} requests"
            return f"must be {self.message.fate.value}, but is {actual}{self.reason and f' ({self.reason})'}"
        made = [_described(request) for request in self.requests]
        if self.message.expected_request and made != [self.message.expected_request]:
            return f"must be sent as {self.message.expected_request}, but was sent as {made}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """What was done to the workers. `at`, `until`: from when to when the thing was away, monotonic seconds."""

    what: str
    is_crash: bool
    at: float
    until: float


@dataclass(slots=True)
class Verdict:
    """Each published message is counted once: accepted, with nothing to send, rejected, or lost."""

    published: int = 0
    #: COMPLETE in the database, and in the API's record
    accepted: int = 0
    #: COMPLETE without a request, and rightly so
    nothing_to_send: int = 0
    #: ERROR without a request, and rightly so
    rejected: int = 0
    #: Of the accepted: sent more than once, each time as the same request with the same Idempotency-Key
    sent_again: int = 0
    lost: list[str] = field(default_factory=list)
    #: Requests that came after a newer message of their group
    out_of_order: list[str] = field(default_factory=list)
    #: Whatever else is not as it must be
    wrong: list[str] = field(default_factory=list)
    crashes: list[Blow] = field(default_factory=list)
    outages: list[Blow] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return [*self.lost, *self.out_of_order, *self.wrong]

    @property
    def headline(self) -> str:
        if not self.findings:
            return "nothing lost, everything in order, the CRM is complete"
        return f"{len(self.lost)} lost, {len(self.out_of_order)} out of order, {len(self.wrong)} otherwise wrong"


def judge(
    rows: Sequence[MessageRow],
    requests: Iterable[RecordedRequest],
    *,
    groups: Mapping[int, str],
    fates: Mapping[int, Fate],
    blows: Iterable[Blow] = (),
) -> Verdict:
    """`groups`, `fates`: the group within its queue and the required end of each message, by message id. A message
    without a fate must be delivered. A blow is survived if the API had a request after its end."""
    verdict = Verdict(published=len(rows))
    requests = list(requests)
    sent = by_message(requests)
    names = {name_of(row): row for row in rows}
    for name, row in names.items():
        mine = sent.get(name, ())
        fate = _fate(row, mine)
        required = fates.get(row.message_id, Fate.DELIVERED)
        if fate is None or not required.allows(fate):
            is_lost = required is Fate.DELIVERED
            actual = fate.value if fate else f"status {row.status} after {len(mine)} requests"
            (verdict.lost if is_lost else verdict.wrong).append(f"{name} must be {required.value}, but is {actual}")
        elif fate is Fate.SKIPPED:
            verdict.nothing_to_send += 1
        elif fate is Fate.REJECTED:
            verdict.rejected += 1
        else:
            verdict.accepted += 1
            verdict.sent_again += len(mine) > 1
        if len({(each.headers.get("idempotency-key"), each.body) for each in mine}) > 1:
            verdict.wrong.append(f"{name} was sent again as another request")
    newest: dict[tuple[str, str], int] = {}
    for request in requests:
        message = names.get(request.message)
        if message is None:
            verdict.wrong.append(f"{request.message} was sent, but is not in the database")
            continue
        group = message.queue, groups[message.message_id]
        if message.message_id < newest.get(group, 0):
            verdict.out_of_order.append(f"{request.message} came after message {newest[group]} of {group[1]}")
        newest[group] = max(newest.get(group, 0), message.message_id)
    for blow in blows:
        if any(request.at > blow.until for request in requests):
            (verdict.crashes if blow.is_crash else verdict.outages).append(blow)
        else:
            verdict.wrong.append(f"nothing was delivered any more after this: {blow.what}")
    return verdict


def by_message(requests: Iterable[RecordedRequest]) -> dict[str, tuple[RecordedRequest, ...]]:
    """Requests by the queue and message that their Idempotency-Key names (see `name_of`)."""
    grouped: dict[str, tuple[RecordedRequest, ...]] = {}
    for request in requests:
        grouped[request.message] = (*grouped.get(request.message, ()), request)
    return grouped


def name_of(row: MessageRow) -> str:
    return f"{row.queue}-{row.message_id}"


def _fate(row: MessageRow, requests: Sequence[RecordedRequest]) -> Fate | None:
    """None if the message is not finished, or was sent and failed."""
    if row.status == Status.COMPLETE:
        return Fate.DELIVERED if requests else Fate.SKIPPED
    if row.status == Status.ERROR and not requests:
        return Fate.REJECTED
    return None


def _described(request: RecordedRequest) -> str:
    """As fixtures name requests: 'POST /order', 'POST webhook'."""
    endpoint = request.path.removeprefix("/v1")
    return f"{request.method} {'webhook' if endpoint == '/hook' else endpoint}"
