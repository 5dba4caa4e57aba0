"""What has a circuit breaker, and the words about it while only probes are sent there: the same in the log, `status`,
`check`, page and /healthz."""

from __future__ import annotations

from zithara_worker.messages import Target

API = "api"
WEBHOOK = "webhook"
#: How a reason begins if an operator has to correct the credentials; no probe can succeed before.
CREDENTIALS = "credentials refused"


def targets_of(target: Target, path: str) -> tuple[str, ...]:
    """The targets that a request goes to: the host, then the path. All webhooks go to one URL, so their host has no
    paths."""
    return (API, path) if target is Target.API else (WEBHOOK,)


def down(target: str, why: str, *, seen: str = "") -> str:
    """What is down, and why. `target`: "api", "webhook" or a path; `why`: of its breaker; `seen`: by whom, if not by
    all workers."""
    return f"{'API' if target == API else target} DOWN{seen}: {why or 'deliveries fail'}"


def remedy(target: str, why: str, *, probe: str = "the next probe comes by itself") -> str:
    """What to do, or what happens next. `probe`: when the next probe is sent."""
    if why.startswith(CREDENTIALS):
        return "correct client id and secret in the shop's Zithara configuration, or in [zithara]; no message is lost"
    look = "; if it lasts, 'zithara-worker doctor' checks address, certificate and token" if target == API else ""
    return f"messages wait and lose no attempt, {probe}{look}"
