"""Decides what an HTTP answer means for its message, and makes excerpts of answers for people. Pure; sends nothing.

Sources: an error body of the API has `status`, `error` and `message`. The PHP module (zithara/webhook 1.0.3,
Model/Queue/CartProcessor) reads the `status` of the body to learn whether a cart was accepted, so the body counts
besides the HTTP status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

from zithara_worker import reasons
from zithara_worker.messages import Evidence, Outcome, OutcomeKind, Request, Target

#: Bytes of an answer's body that are read. An answer of the API has a few hundred.
BODY_LIMIT = 64 * 1024
#: Characters of an answer that outcomes, logs and reasons show.
EXCERPT_LENGTH = 500
#: Longest Retry-After that is obeyed. A host that asks for more has a wrong clock or is misconfigured.
MAX_RETRY_AFTER_SECONDS = 86_400.0
#: Levels of nesting that are parsed. An answer of the API has two. Python's parser allows up to ten thousand (3.13),
#: which overflows the small stack of a delivery thread and crashes the process.
MAX_DEPTH = 100

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY)


class _NotJson:
    """The result of parsing a body that is not JSON. None does not serve, because it is the result of `null`."""


NOT_JSON: Final = _NotJson()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer with its whole head and up to BODY_LIMIT + 1 bytes of its body.

    `headers`: names in lower case, or a mapping that ignores case. `broken`: the connection ended or the time ran out
    within the body. `duration_ms`: from before connecting until the last byte was read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    broken: bool
    duration_ms: float

    def parsed(self) -> Any:
        """The body as JSON. NOT_JSON if it is not JSON or cannot be read."""
        if not self.body or self.unreadable():
            return NOT_JSON
        try:
            return json_of(self.body.decode(json.detect_encoding(self.body), "surrogatepass"))
        except UnicodeDecodeError:
            return NOT_JSON

    def unreadable(self) -> str:
        """The reason code why the content of the body is unknown. "" if the body can be read."""
        if self.broken:
            return reasons.TRUNCATED_ANSWER
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if len(self.body) > BODY_LIMIT or encoding not in ("", "identity"):
            return reasons.UNREADABLE_ANSWER
        return ""


def json_of(text: str) -> Any:
    """A text as JSON. NOT_JSON if it is not JSON or has more than MAX_DEPTH levels."""
    try:
        return NOT_JSON if _is_too_deep(text) else json.loads(text)
    except ValueError:
        return NOT_JSON


def _is_too_deep(text: str) -> bool:
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            return True
    return False


def effective_status(answer: Answer, parsed: Any) -> int:
    """The `status` of the body if the HTTP status is 2xx and the body's is a number from 400 to 599, or such a number
    as text. Otherwise the HTTP status."""
    if 200 <= answer.status < 300 and isinstance(parsed, dict):
        own = parsed.get("status")
        if isinstance(own, str):
            own = own.strip()
            # Only three digits are converted: int() raises for a number of some thousand digits.
            own = int(own) if len(own) == 3 and own.isascii() and own.isdecimal() else None
        if isinstance(own, (int, float)) and not isinstance(own, bool) and 400 <= own < 600:
            return int(own)
    return answer.status


def classify(
    answer: Answer, request: Request, *, endpoint: str, now_utc: Callable[[], float], mask: Callable[[str], str]
) -> Outcome:
    """The outcome of an answer. `now_utc`: seconds since the epoch, for a date in Retry-After.

    The API:
    - 2xx is success, with an empty body (204) and with plain text too, as for the PHP module. Exceptions: the body has
      a `status` from 400 to 599, which then decides; or nobody can know whether it has one, because the body is cut
      off, longer than BODY_LIMIT, compressed (requests ask for `identity`), broken JSON, or an HTML page, which a proxy
      or a maintenance page wrote. Such an answer is retried.
    - 3xx, and 4xx without JSON, did not come from the API but from a host before it. They are retried: to complete or
      to fail the message would lose it.

    Receivers of webhooks are programs of others: 2xx is success, 410 means that the receiver is gone for good, and
    everything else is retried.
    """

    def outcome(
        kind: OutcomeKind,
        reason: str,
        evidence: Evidence,
        retry_after_seconds: float | None = None,
    ) -> Outcome:
        return Outcome(
            kind=kind,
            reason=reason,
            http_status=answer.status,
            detail=describe(answer, mask),
            retry_after_seconds=retry_after_seconds,
            duration_ms=answer.duration_ms,
            endpoint=endpoint,
            evidence=evidence,
        )

    from_api = request.target is Target.API
    status = answer.status
    parsed: Any = NOT_JSON
    if from_api:
        parsed = answer.parsed()
        status = effective_status(answer, parsed)
    if 200 <= status < 300:
        reason = _doubtful(answer, parsed) if from_api else ""
        if reason:
            return outcome(OutcomeKind.RETRY, reason, Evidence.PATH)
        return Outcome(
            kind=OutcomeKind.DELIVERED,
            http_status=answer.status,
            duration_ms=answer.duration_ms,
            endpoint=endpoint,
            evidence=Evidence.SERVED,
        )
    pause = retry_after_seconds(answer, now_utc)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return outcome(OutcomeKind.RELEASED, reasons.THROTTLED, Evidence.NONE, pause)
    reason = reasons.http_status(status)
    if not from_api:
        if status == HTTPStatus.GONE:
            return outcome(OutcomeKind.FAILED, reason, Evidence.SERVED)
        return outcome(OutcomeKind.RETRY, reason, Evidence.PATH, pause)
    if (
        not 400 <= status < 500
        or status in _TRANSIENT
        or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        or parsed is NOT_JSON
    ):
        return outcome(OutcomeKind.RETRY, reason, Evidence.PATH, pause)
    if status == HTTPStatus.NOT_FOUND and (request.method, request.path) == ("PATCH", "/order"):
        return outcome(OutcomeKind.RETRY, reasons.ORDER_NOT_FOUND_YET, Evidence.SERVED)
    return outcome(OutcomeKind.FAILED, reason, Evidence.SERVED)


def _doubtful(answer: Answer, parsed: Any) -> str:
    """The reason code why a 2xx of the API is not a success. "" if it is one."""
    unreadable = answer.unreadable()
    if unreadable or parsed is not NOT_JSON:
        return unreadable
    if answer.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
        return reasons.HTML_ANSWER
    # A body that begins like JSON and cannot be parsed was cut off, or is more than the parser accepts.
    return reasons.UNREADABLE_ANSWER if answer.body.lstrip()[:1] in (b"{", b"[") else ""


def retry_after_seconds(answer: Answer, now_utc: Callable[[], float]) -> float | None:
    """Seconds from now that Retry-After asks for (RFC 9110, 10.2.3: whole seconds or an HTTP date). None if it is
    absent or malformed."""
    value = answer.headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if date.tzinfo is None:  # the zone "-0000"; an HTTP date is always in GMT
        date = date.replace(tzinfo=timezone.utc)
    return min(max(0.0, date.timestamp() - now_utc()), MAX_RETRY_AFTER_SECONDS)


def excerpt(text: str, mask: Callable[[str], str]) -> str:
    """The text as one line for people, without unprintable characters, masked, at most EXCERPT_LENGTH characters.

    It is masked before it is cut. Otherwise the cut could leave half a token, which `mask` does not recognise.
    """
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    line = mask(line)
    return line if len(line) <= EXCERPT_LENGTH else line[: EXCERPT_LENGTH - 3] + "..."


def describe(answer: Answer, mask: Callable[[str], str]) -> str:
    """Status, target of a redirect, and the beginning of the body as one line; see `excerpt`."""
    said = f"HTTP {answer.status}"
    if 300 <= answer.status < 400 and "location" in answer.headers:
        said += f" to {answer.headers['location'][:200]} (redirects are not followed: set the final URL)"
    body = answer.body.decode("utf-8", "replace").strip()
    return excerpt(f"{said}: {body}" if body else said, mask)
