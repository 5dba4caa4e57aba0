"""The values on the path of a message. Every room may use them.

    queue row --claim--> Message --decode--> Event --process--> Request --deliver--> Outcome --settle--> queue row

This module knows no table, no HTTP and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A decoded message. `payload` is the parsed JSON that the shop sent; no class mirrors it, because the module owns
    that schema."""

    topic: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a message can never become a request: a `code` of `reasons`, and a `detail` for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """The message is complete without a request; `reason` is a code of `reasons`."""

    reason: str


class Target(Enum):
    """Where a request goes."""

    API = "api"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """What a request says about its order, customer or cart, as the delivery ledger compares it.

    `names`: of a customer, every name that the request tells, a line each, so that a request which tells less is known
    not to replace it; "" where a request always tells all. `updated_at`: of an order, its own time,
    'YYYY-MM-DD HH:MM:SS' UTC, or "". `is_create`: of an order, whether the request tells its customer and items too.
    `state`: the part of the request's JSON that stays the same whatever the method.
    """

    names: str = ""
    updated_at: str = ""
    is_create: bool = False
    state: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, without the token, which is added when it is sent.

    `path` is relative to the API's base URL for `Target.API` ("/order"), the whole URL for `Target.WEBHOOK`.
    `headers` holds only what this message adds (X-Webhook-Event). `idempotent` says whether sending it twice
    leaves the same state: all Zithara upserts are, webhooks are not.
    """

    target: Target
    method: str
    path: str
    json: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = True
    #: Codes of `reasons` that are counted and logged though the request is sent: "invented_phone"
    warnings: tuple[str, ...] = ()
    #: None for an event, which replaces nothing
    entity: Entity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request that Zithara accepted: SHA-256 of the request (method, path, body) and of its entity's state."""

    entity: Entity
    request: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What Zithara last accepted of an entity, as the claim read it. Ids are those of queue_message.

    `message_id`: the newest message accepted; 0 where ids have begun again. `published_at`: when it was published, or a
    little later. `create_id`: of an order, the newest create. `names`, `entity_updated_at`: see `Entity`. `request`:
    SHA-256 of the request, "" where what the CRM holds is not sure. `accepted_ago`: seconds at the time of the claim.
    """

    message_id: int
    published_at: str
    create_id: int
    names: str
    request: str
    entity_updated_at: str
    accepted_ago: float


class Pending(NamedTuple):
    """The two ids of a message that waits to be delivered. Sorts by message id: the order of delivery in a group."""

    #: queue_message.id
    message_id: int
    #: queue_message_status.id, Magento's 'relation id'
    id: int

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Pending:
        """From any row with the columns `message_id` and `id`."""
        return cls(int(row["message_id"]), int(row["id"]))


class Lease:
    """Until when no other worker can take the message over: seconds on a clock that runs on while the machine sleeps.

    The clock is read before the statement that claims or renews is sent, so the lease in the database ends later than
    this. 0: the lease has ended, and nothing may be sent any more.
    """

    __slots__ = ("valid_until",)

    def __init__(self, valid_until: float) -> None:
        self.valid_until = valid_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A claimed row of queue_message_status with its queue_message, and what is needed to settle or release it."""

    #: queue_message_status.id, Magento's 'relation id'
    id: int
    #: queue_message.id: decides the order within a group
    message_id: int
    queue_id: int
    queue_name: str
    topic: str
    group_key: str
    #: Magento's count, which PHP consumers and deaths of workers raise too. Together with `id` it fences: a worker that
    #: takes the message over increments it
    number_of_trials: int
    #: Number of the claim, unique for its worker; every statement about the message's group names both
    claim: int
    #: Failed attempts of workers before this claim; those of PHP consumers do not count
    attempts: int = 0
    #: Those of the attempts without a witness: no other group has succeeded on the path since
    unwitnessed: int = 0
    #: How often an operator asked for a retry
    retries: int = 0
    #: A worker died while it held the message, and it has had no answer since: it is delivered while its worker holds
    #: nothing else
    suspect: bool = False
    #: When the attempt before this one failed, on the clock of leases; None: there was none
    failed_at: float | None = None
    #: Bytes of its body
    length: int = 0
    #: 2 or 5: what a release puts back
    status_before: int
    #: 'YYYY-MM-DD HH:MM:SS' UTC: what a release puts back
    updated_at_before: str
    #: Older pending snapshots of the same group that this one replaces, oldest first
    supersedes: tuple[Pending, ...] = ()
    #: Newer messages of the group that were tried before and let this one go first: the next heads, oldest first
    behind: tuple[Pending, ...] = ()
    #: What Zithara has accepted of its entity; None: nothing, or nothing that is known
    known: Known | None = None
    lease: Lease

    @property
    def key(self) -> str:
        """The first part of its idempotency key; see `zithara.api.idempotency_key`."""
        return f"{self.queue_name}-{self.message_id}"

    @property
    def log_fields(self) -> Mapping[str, Any]:
        """The fields of every log line about this message."""
        return {
            "topic": self.topic,
            "message_id": self.message_id,
            "group": self.group_key,
            "attempt": self.attempts + 1,
        }


class Claimed(NamedTuple):
    """A claimed message, kept until it is settled, and its content, needed until its request is made."""

    message: Message
    content: Event | Rejection


class OutcomeKind(Enum):
    """What became of a claimed message; `queue.statuses` maps each kind to Magento's status."""

    DELIVERED = "delivered"
    SKIPPED = "skipped"
    RETRY = "retry"
    FAILED = "failed"
    #: Not the message's fault: its row becomes what it was before the claim
    RELEASED = "released"
    #: Another worker may hold it by now: nothing may be written
    LEASE_LOST = "lease_lost"


class Evidence(Enum):
    """What an exchange proves about the host and the path; circuit breakers and witnesses decide by it."""

    #: Nothing: no exchange took place, or the answer proves nothing about others (429)
    NONE = "none"
    #: The path serves: the API took the message, or refused it for what is in it
    SERVED = "served"
    #: The message failed; the cause may be an outage of the path or the message itself
    PATH = "path"
    #: The host serves nobody: no TCP or TLS connection, or no access token
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of handling one message.

    `reason` is a code of `reasons`; `detail` is an excerpt for people, without tokens and secrets.
    `retry_after_seconds`: the least delay that the server asked for, if it did.
    `duration_ms`: time of the last HTTP exchange, None when nothing was sent. `endpoint`: "POST /order", "webhook".
    `request_sha256`: hexadecimal, of the JSON body; "" where there is no audit file.
    """

    kind: OutcomeKind
    reason: str = ""
    http_status: int | None = None
    detail: str = ""
    retry_after_seconds: float | None = None
    duration_ms: float | None = None
    endpoint: str = ""
    evidence: Evidence = Evidence.NONE
    #: Of a failure: another group succeeded on the path shortly before it, and after the message's previous failure
    witnessed: bool = False
    request_sha256: str = ""
    #: What the delivery ledger records of a request that was accepted
    accepted: Accepted | None = None

    @property
    def may_arrive(self) -> bool:
        """Whether a request may have left that was neither accepted nor refused: it may still be processed."""
        return self.evidence is Evidence.PATH and self.kind in (
            OutcomeKind.RETRY,
            OutcomeKind.FAILED,
            OutcomeKind.RELEASED,
        )
