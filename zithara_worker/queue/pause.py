"""Stops and restarts a topic for the whole fleet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.logs.audit import operator_action
from zithara_worker.queue import control

log = logging.getLogger(__name__)

#: Takes the audit lines of what was done.
Audit = Callable[[Sequence[Mapping[str, Any]]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What came of a pause or resume. `pause`: the one in force now, None when the topic runs."""

    topic: str
    changed: bool
    pause: control.Pause | None


def pause(database: Database, topics: Sequence[str], *, by: str, reason: str, audit: Audit) -> list[Changed]:
    """Seen by every worker within one poll; what is in flight is finished. A topic that is paused stays as it is."""
    done = {topic: control.pause(database, topic, by=by, reason=reason) for topic in topics}
    return _told("pause", done, control.paused(database), by=by, reason=reason, audit=audit)


def resume(database: Database, topics: Sequence[str], *, by: str, audit: Audit) -> list[Changed]:
    done = {topic: control.resume(database, topic) for topic in topics}
    return _told("resume", done, control.paused(database), by=by, reason="", audit=audit)


def _told(
    action: str,
    done: Mapping[str, bool],
    in_force: Mapping[str, control.Pause],
    *,
    by: str,
    reason: str,
    audit: Audit,
) -> list[Changed]:
    changed = [topic for topic, was_changed in done.items() if was_changed]
    audit([operator_action(action, who=by, topic=topic, reason=reason) for topic in changed])
    for topic in changed:
        fields = {"event": f"operator_{action}", "topic": topic, "operator": by}
        log.info("operator: %s %s", action, topic, extra={**fields, "detail": reason} if reason else fields)
    return [Changed(topic=topic, changed=was, pause=in_force.get(topic)) for topic, was in done.items()]
