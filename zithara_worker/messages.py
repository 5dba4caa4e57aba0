"""The values that travel the path of a message: frozen, and known to every room.

    queue row --claim--> Message --decode--> Event --process--> Request --deliver--> Outcome --settle--> queue row

This module knows no table, no HTTP and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

TOPIC_WEBHOOK = "zithara.webhook.events"
TOPIC_CUSTOMER = "zithara.customer.events"
TOPIC_ORDER = "zithara.order.events"
TOPIC_CART = "zithara.cart.events"

#: The module's four topics (its etc/communication.xml), in the order in which people list them.
TOPICS = (TOPIC_ORDER, TOPIC_CUSTOMER, TOPIC_CART, TOPIC_WEBHOOK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A decoded message. `payload` stays the parsed JSON that the shop sent: we do not own that schema."""

    topic: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a message can never become a request: a stable documented `code`, and a `detail` for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """There is legitimately nothing to deliver, and why (a stable documented code)."""

    reason: str


class Target(Enum):
    """Where a request goes."""

    API = "api"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, without the token: that belongs to the delivery.

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
    #: What a person should know though the request is sent (codes, e.g. "invented_phone"); counted and logged.
    warnings: tuple[str, ...] = ()


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
    """How long a claimed message is surely ours, in seconds on the clock of leases, which never stands still.

    The time is taken before the statement that claimed or renewed it was sent, so it errs on the short side. 0: it is
    over, and nothing may be sent any more.
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
    #: Magento's count, which PHP consumers and dead workers raise too; with `id` a fence: a taking-over increments it
    number_of_trials: int
    #: The claim that brought it, unique for its worker: every statement about its group names both
    claim: int
    #: Our failed attempts before this claim; what PHP consumers tried does not count
    attempts: int = 0
    #: Those of the attempts after which nothing shows that the path served anybody
    unwitnessed: int = 0
    #: How often an operator asked for a retry
    retries: int = 0
    #: A worker died while it held the message, and none has brought an answer for it since: it is delivered alone
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
    lease: Lease

    @property
    def key(self) -> str:
        """What its requests are known by, together with what is in them: see `zithara.api.idempotency_key`."""
        return f"{self.queue_name}-{self.message_id}"

    @property
    def log_fields(self) -> Mapping[str, Any]:
        """What every log line about this message carries."""
        return {
            "topic": self.topic,
            "message_id": self.message_id,
            "group": self.group_key,
            "attempt": self.attempts + 1,
        }


class Claimed(NamedTuple):
    """What a claim brings: the message, kept until it is settled, and what was in it, needed for its request only."""

    message: Message
    content: Event | Rejection


class OutcomeKind(Enum):
    """What became of a claimed message; `magento.statuses` maps each kind to Magento's status."""

    DELIVERED = "delivered"
    SKIPPED = "skipped"
    RETRY = "retry"
    FAILED = "failed"
    #: Not the message's fault: goes back untouched
    RELEASED = "released"
    #: Another worker may hold it by now: nothing may be written
    LEASE_LOST = "lease_lost"


class Evidence(Enum):
    """What an exchange says about the host and the path it went to, whatever it says about the message."""

    #: Nothing: no exchange took place, or the answer says nothing about others (429)
    NONE = "none"
    #: The path serves: the API took the message, or refused it for what is in it
    SERVED = "served"
    #: The message failed in a way that an outage of the path would explain, and so would the message itself
    PATH = "path"
    #: The host is not there for anybody: no TCP or TLS connection, or no access token
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of handling one message.

    `reason` is a stable documented code; `detail` an excerpt for people (no token, no secret).
    `retry_after_seconds`: the least delay that the server asked for, if it did.
    `duration_ms`: time of the last HTTP exchange, None when nothing was sent. `endpoint`: "POST /order", "webhook".
    `request_sha256`: hexadecimal, of the JSON body; only where an audit wants it.
    """

    kind: OutcomeKind
    reason: str = ""
    http_status: int | None = None
    detail: str = ""
    retry_after_seconds: float | None = None
    duration_ms: float | None = None
    endpoint: str = ""
    evidence: Evidence = Evidence.NONE
    #: Of a failure: another group was served on the path just before it, and after the failure before it
    witnessed: bool = False
    request_sha256: str = ""
