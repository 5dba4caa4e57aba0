"""What an answer means for its message: statuses, the API's own `status` in a body, excerpts. Pure; sends nothing.

Sources: an error body of the API has `status`, `error` and `message`; the PHP module (zithara/webhook 1.0.3,
Model/Queue/CartProcessor) takes a cart as accepted by the `status` of the body, so the body has a say beside HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from zithara_worker.messages import Outcome, OutcomeKind, Request, Target
from zithara_worker.zithara import reasons

#: Characters of an answer that are kept for people.
EXCERPT_LENGTH = 500
#: A host that asks for more than a day has lost its clock, or wants a person to look: then ask again after a day.
MAX_RETRY_AFTER_SECONDS = 86_400.0

_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: the head in full, the body up to the transport's limit.

    `broken`: the connection ended, or time ran out, within the body. `duration_ms`: from the first byte out, connecting
    included, to the last byte in. `headers`: names in lower case; of a repeated one the last.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    broken: bool
    duration_ms: float

    def parsed(self) -> Any:
        """The body as JSON; None when it is none (or is `null`)."""
        try:
            return json.loads(self.body) if self.body else None
        except (ValueError, RecursionError):
            return None


def effective_status(answer: Answer, parsed: Any) -> int:
    """The body's own `status` where HTTP says success and a numeric `status` >= 400 says otherwise; else HTTP's."""
    if 200 <= answer.status < 300 and isinstance(parsed, dict):
        own = parsed.get("status")
        if isinstance(own, (int, float)) and not isinstance(own, bool) and 400 <= own < float("inf"):
            return int(own)
    return answer.status


def classify(
    answer: Answer, request: Request, *, endpoint: str, now_utc: Callable[[], float], mask: Callable[[str], str]
) -> Outcome:
    """The outcome of an answer, after design section 4; 401 and 403 read as credentials_refused.

    A webhook's receiver is somebody else's program: any 2xx is success. From the API, 2xx is success unless

    - its body is JSON with its own numeric `status` of 400 or more, which then decides;
    - the connection broke within the body: what was cut off may have been that `status`, and every API request is an
      upsert, so it is sent again;
    - the body is an HTML page: whatever answered, it was not the API, and completing the message would lose it.

    Any other body counts as success, an empty one (204) and one that is not JSON, as it does for the PHP module:
    the status line is what the API vouches with. `now_utc`: seconds since the epoch, to read a date in Retry-After.
    """
    from_api = request.target is Target.API
    if 200 <= answer.status < 300:
        if not from_api:
            return _delivered(answer, endpoint)
        parsed = answer.parsed()
        status = effective_status(answer, parsed)
        if status < 400:
            if answer.broken:
                return _outcome(answer, endpoint, mask, OutcomeKind.RETRY, reasons.TRUNCATED_ANSWER, outage=True)
            if parsed is None and _is_html(answer):
                return _outcome(answer, endpoint, mask, OutcomeKind.RETRY, reasons.HTML_ANSWER, outage=True)
            return _delivered(answer, endpoint)
    else:
        status = answer.status
    if status in _REFUSED:
        return _outcome(answer, endpoint, mask, OutcomeKind.RELEASED, reasons.CREDENTIALS_REFUSED, outage=True)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        pause = retry_after_seconds(answer, now_utc)
        return _outcome(answer, endpoint, mask, OutcomeKind.RELEASED, reasons.THROTTLED, retry_after=pause)
    reason = f"{reasons.HTTP_STATUS_PREFIX}{status}"
    if status in _TRANSIENT or 500 <= status < 600:
        pause = retry_after_seconds(answer, now_utc)
        return _outcome(answer, endpoint, mask, OutcomeKind.RETRY, reason, retry_after=pause, outage=True)
    if status == HTTPStatus.NOT_FOUND and from_api and (request.method, request.path) == ("PATCH", "/order"):
        return _outcome(answer, endpoint, mask, OutcomeKind.RETRY, reasons.ORDER_NOT_FOUND_YET)
    return _outcome(answer, endpoint, mask, OutcomeKind.FAILED, reason)


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


def _is_html(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml"))


def _delivered(answer: Answer, endpoint: str) -> Outcome:
    return Outcome(
        kind=OutcomeKind.DELIVERED, http_status=answer.status, duration_ms=answer.duration_ms, endpoint=endpoint
    )


def _outcome(
    answer: Answer,
    endpoint: str,
    mask: Callable[[str], str],
    kind: OutcomeKind,
    reason: str,
    *,
    retry_after: float | None = None,
    outage: bool = False,
) -> Outcome:
    return Outcome(
        kind=kind,
        reason=reason,
        http_status=answer.status,
        detail=describe(answer, mask),
        retry_after_seconds=retry_after,
        duration_ms=answer.duration_ms,
        endpoint=endpoint,
        outage=outage,
    )
