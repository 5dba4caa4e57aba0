"""Reads recorded messages of the PHP module: a plugin-cases.jsonl, with the required outcome of each, and an
amqp-samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from zithara_worker.errors import ConfigurationError
from zithara_worker.topics import TOPIC_WEBHOOK


class Fate(Enum):
    DELIVERED = "delivered"
    SKIPPED = "skipped"
    REJECTED = "rejected"
    #: Nothing to deliver: COMPLETE and ERROR are both right
    SKIPPED_OR_REJECTED = "skipped or rejected"

    def allows(self, actual: Fate) -> bool:
        return actual is self or (self is Fate.SKIPPED_OR_REJECTED and actual in (Fate.SKIPPED, Fate.REJECTED))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixtureMessage:
    id: str
    topic: str
    description: str
    #: What the observer passed to Magento's publisher; None if the case has only a stored body
    published: str | None
    #: queue_message.body
    body: str
    #: The shop's webhook URL in this case, None: not configured
    webhook_url: str | None
    #: The requests that PHP made: method, path, headers, json
    requests: tuple[Mapping[str, Any], ...]
    #: The classes of the PHP module's defects in this case
    bug: tuple[str, ...]
    #: The right outcome, where PHP's is wrong
    want: Mapping[str, Any]

    @property
    def fate(self) -> Fate:
        """The outcome that the worker must reach."""
        if self.want.get("error"):
            return Fate.REJECTED
        if self.want.get("skip"):
            return Fate.SKIPPED
        if self.want.get("skip_or_error"):
            return Fate.SKIPPED_OR_REJECTED
        # PHP drops a webhook message that lacks config_id; the worker uses the active configuration row.
        if self.requests or "request" in self.want or "config_id" in self.bug:
            return Fate.DELIVERED
        return Fate.REJECTED

    @property
    def expected_request(self) -> str | None:
        """Method and endpoint of the request that must be made, as in 'POST /order' or 'POST webhook'."""
        if self.fate is not Fate.DELIVERED:
            return None
        if "request" in self.want:
            return str(self.want["request"])
        if self.topic == TOPIC_WEBHOOK:
            return "POST webhook"
        return f"{self.requests[0]['method']} {self.requests[0]['path']}"


def fixture_messages(path: Path) -> list[FixtureMessage]:
    """All cases of the file, in its order. Raises ConfigurationError when it cannot be read."""
    return [_message(case) for case in _lines(path, "plugin-cases.jsonl")]


def published_messages(path: Path) -> list[tuple[str, str]]:
    """Topic and body of the messages in an amqp-samples.jsonl, in its order. Raises ConfigurationError when it cannot
    be read."""
    return [(each["routing_key"], each["body"]) for each in _lines(path, "amqp-samples.jsonl")]


def _lines(path: Path, name: str) -> list[Mapping[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"no recorded messages in {path}: {error.strerror}; give the path of a {name}"
        ) from error
    return [json.loads(line) for line in lines if line.strip()]


def _message(case: Mapping[str, Any]) -> FixtureMessage:
    return FixtureMessage(
        id=case["id"],
        topic=case["topic"],
        description=case["description"],
        published=case["published"],
        body=case["body"],
        webhook_url=case["config"]["webhook_url"],
        requests=tuple(case["expected"]["requests"]),
        bug=tuple(case["bug"]),
        want=case["want"] or {},
    )
