"""What an answer means for its message: statuses, the API's own `status` in a body, excerpts. Pure; sends nothing.

Sources: an error body of the API has `status`, `error` and `message`; the PHP module (zithara/webhook 1.0.3,
Model/Queue/CartProcessor) takes a cart as accepted by the `status` of the body, so the body has a say beside HTTP.
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

#: Bytes of an answer's body that are looked at; an API answer is a few hundred.
BODY_LIMIT = 64 * 1024
#: Characters of an answer that are kept for people.
EXCERPT_LENGTH = 500
#: A host that asks for more than a day has lost its clock, or wants a person to look: then ask again after a day.
MAX_RETRY_AFTER_SECONDS = 86_400.0

#: Levels of nesting of an answer that is read; an API answer has two. Python's own parser is no bound: where it allows
#: ten thousand levels (3.13), it overruns the stack of a delivery thread, which ends the process.
MAX_DEPTH = 100

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY)


class _NotJson:
    """What a body is that says nothing as JSON; `null` says something."""


NOT_JSON: Final = _NotJson()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: the head in full, the body up to one byte more than BODY_LIMIT.

    `broken`: the connection ended, or time ran out, within the body. `duration_ms`: from before connecting to the last
    byte in. `headers`: names in lower case, or a mapping that does not care.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    broken: bool
    duration_ms: float

    def parsed(self) -> Any:
        """The body as JSON; NOT_JSON when it is none, or cannot be read."""
        if not self.body or self.unreadable():
            return NOT_JSON
        try:
            return json_of(self.body.decode(json.detect_encoding(self.body), "surrogatepass"))
        except UnicodeDecodeError:
            return NOT_JSON

    def unreadable(self) -> str:
        """Why nobody can know what the body says, a code of `reasons`; "" when it can be read."""
        if self.broken:
            return reasons.TRUNCATED_ANSWER
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if len(self.body) > BODY_LIMIT or encoding not in ("", "identity"):
            return reasons.UNREADABLE_ANSWER
        return ""


def json_of(text: str) -> Any:
    """A text as JSON; NOT_JSON when it is none, or nests more than MAX_DEPTH levels deep."""
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
    """The body's own `status` where HTTP says success and that is a number from 400 to 599, or its text; or HTTP's."""
    if 200 <= answer.status < 300 and isinstance(parsed, dict):
        own = parsed.get("status")
        if isinstance(own, str):
            own = own.strip()
            # Three digits before converting: int() refuses a number of some thousand digits.
            own = int(own) if len(own) == 3 and own.isascii() and own.isdecimal() else None
        if isinstance(own, (int, float)) and not isinstance(own, bool) and 400 <= own < 600:
            return int(own)
    return answer.status


def classify(
    answer: Answer, request: Request, *, endpoint: str, now_utc: Callable[[], float], mask: Callable[[str], str]
) -> Outcome:
    """The outcome of an answer, after design section 4. `now_utc`: seconds since the epoch, for a date in Retry-After.

    A webhook's receiver is somebody else's program: any 2xx is success, 410 says that nobody is there for good, and
    anything else is tried again. From the API, 2xx is success unless the body has a `status` of its own that says
    otherwise, or nobody can know whether it has: cut off, longer than BODY_LIMIT, compressed (we ask for `identity`),
    JSON that cannot be parsed, or an HTML page, which some host between us and the API wrote. Any other body counts as
    success, an empty one (204) and plain text, as it does for the PHP module. A 3xx, and a 4xx without JSON, are not
    the API's word either: completing or failing the message would lose it.
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
    """Why a 2xx of the API is no success, a code of `reasons`; "" when it is one."""
    unreadable = answer.unreadable()
    if unreadable or parsed is not NOT_JSON:
        return unreadable
    if answer.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
        return reasons.HTML_ANSWER
    # What begins like the API's JSON and is none was cut short, or is more than a parser takes.
    return reasons.UNREADABLE_ANSWER if answer.body.lstrip()[:1] in (b"{", b"[") else ""


def retry_after_seconds(answer: Answer, now_utc: Callable[[], float]) -> float | None:
    """Retry-After (RFC 9110, 10.2.3: whole seconds or an HTTP date) from now; None when absent or not understood."""
    value = answer.headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdecimal():
        # Cut before converting: a number of a thousand digits is no float.
        return min(float(value[:12]), MAX_RETRY_AFTER_SECONDS)
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if date.tzinfo is None:  # "-0000", and the zone of an HTTP date is always GMT
        date = date.replace(tzinfo=timezone.utc)
    return min(max(0.0, date.timestamp() - now_utc()), MAX_RETRY_AFTER_SECONDS)


def excerpt(text: str, mask: Callable[[str], str]) -> str:
    """One line for people: nothing unprintable, no secret, at most EXCERPT_LENGTH characters.

    Masked before it is cut: half a token at the end of an excerpt would still be half a token.
    """
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    line = mask(line)
    return line if len(line) <= EXCERPT_LENGTH else line[: EXCERPT_LENGTH - 3] + "..."


def describe(answer: Answer, mask: Callable[[str], str]) -> str:
    """Status, where a redirect points, and the beginning of the body: one line, see `excerpt`."""
    said = f"HTTP {answer.status}"
    if 300 <= answer.status < 400 and "location" in answer.headers:
        said += f" to {answer.headers['location'][:200]} (redirects are not followed: set the final URL)"
    body = answer.body.decode("utf-8", "replace").strip()
    return excerpt(f"{said}: {body}" if body else said, mask)
