"""What became of every message, and the verdict. Pure: takes what the database and the API saw, and judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.php import Held
from chaos.world import Arrival, Blow, Fate, Misfortune, World
from zithara_worker.magento.statuses import Status

#: A request may be read a little after its sender was killed: it lay in the socket.
IN_THE_SOCKET_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A message as the database has it in the end. `failed`: its recorded reason, if it has one."""

    key: str
    message_id: int
    group: str
    coalesced: bool
    status: int
    failed: str = ""


@dataclass(slots=True)
class Verdict:
    """`duplicates`: explanation -> how many arrivals beyond the first were acted on. The lists name what is wrong."""

    messages: int = 0
    delivered: int = 0
    superseded: int = 0
    by_php: int = 0
    arrivals: int = 0
    refused: int = 0
    duplicates: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.out_of_order or self.unexplained or self.strangers)


def judge(rows: Sequence[Row], world: World, php: Mapping[int, Held] | None = None) -> Verdict:
    """Lost: not COMPLETE at the end, or COMPLETE though the API never acted on it and nothing newer replaced it.

    Out of order: the API acted on a message after it had acted on a newer one of the group. Duplicates: acted on again;
    explained by what happened to the earlier request, or to its sender or the database in between.

    `php`: what a PHP consumer of the same queue did, by message id. It processes without asking for order, so the
    groups that it had a hand in are not judged for order.
    """
    php = php or {}
    verdict = Verdict(messages=len(rows), arrivals=len(world.order))
    by_key = {row.key: row for row in rows}
    verdict.strangers = [f"{key} arrived, but is not in the database" for key in world.arrivals if key not in by_key]
    newest = _newest_acted_on(rows, world)
    for row in rows:
        arrivals = world.arrivals.get(row.key, ())
        acted_on = [arrival for arrival in arrivals if arrival.fate is not Fate.REFUSED]
        verdict.refused += len(arrivals) - len(acted_on)
        if row.status != Status.COMPLETE:
            status = Status(row.status).name if row.status in set(Status) else row.status
            verdict.lost.append(f"{row.key} ({row.group}) is {status} {row.failed}".rstrip())
        elif acted_on:
            verdict.delivered += 1
            if row.message_id in php and php[row.message_id].processed:
                again = Arrival(php[row.message_id].at, -1, Fate.ANSWERED, "by PHP")
                first, second = sorted((acted_on[-1], again), key=lambda each: each.at)
                why = explanation(first, second, world.misfortunes)
                if why:
                    verdict.duplicates[why] += 1
                else:
                    verdict.unexplained.append(f"{row.key} ({row.group}): {first} and again {second}")
        elif row.message_id in php:
            verdict.by_php += 1
        elif row.coalesced and newest.get(row.group, 0) > row.message_id:
            verdict.superseded += 1
        else:
            verdict.lost.append(f"{row.key} ({row.group}) is COMPLETE, but the API never acted on it")
        for before, again in pairwise(acted_on):
            why = explanation(before, again, world.misfortunes)
            if why:
                verdict.duplicates[why] += 1
            else:
                verdict.unexplained.append(f"{row.key} ({row.group}): {before} and again {again}")
    by_php = {row.group for row in rows if row.message_id in php}
    verdict.out_of_order = _out_of_order({key: row for key, row in by_key.items() if row.group not in by_php}, world)
    return verdict


def explanation(before: Arrival, again: Arrival, misfortunes: Collection[Misfortune]) -> str | None:
    """Why a message that had been acted on was sent again; None when nothing explains it."""
    if before.fate is Fate.ANSWER_LOST:
        return f"fault: {before.fault}"
    for each in misfortunes:
        hit = each.slot is None or each.slot == before.slot
        if hit and each.at <= again.at and each.until >= before.at - IN_THE_SOCKET_SECONDS:
            return each.blow.value
    return None


def _newest_acted_on(rows: Sequence[Row], world: World) -> Mapping[str, int]:
    newest: dict[str, int] = {}
    for row in rows:
        if any(arrival.fate is not Fate.REFUSED for arrival in world.arrivals.get(row.key, ())):
            newest[row.group] = max(newest.get(row.group, 0), row.message_id)
    return newest


def _out_of_order(by_key: Mapping[str, Row], world: World) -> list[str]:
    """Judged by when requests were read, and for every one of them, refused ones too."""
    found: list[str] = []
    newest: dict[str, Row] = {}
    seen: Counter[str] = Counter()
    for key in world.order:
        row = by_key.get(key)
        if row is None:
            continue
        arrival = world.arrivals[key][seen[key]]
        seen[key] += 1
        before = newest.get(row.group)
        if before is not None and row.message_id < before.message_id:
            found.append(
                f"{key} ({row.group}) came after {before.key}: {arrival}; all of the older: {world.arrivals[key]}; "
                f"all of the newer: {world.arrivals[before.key]}; {_what_befell(arrival, world.misfortunes)}"
            )
        if arrival.fate is not Fate.REFUSED and (before is None or row.message_id > before.message_id):
            newest[row.group] = row
    return found


def _what_befell(arrival: Arrival, misfortunes: Collection[Misfortune]) -> str:
    near = [each for each in misfortunes if each.at <= arrival.at and each.until >= arrival.at - 10]
    return "in the 10 s before: " + (", ".join(map(str, near)) or "nothing")


def report(verdict: Verdict, blows: Mapping[Blow, int]) -> str:
    lines = [
        f"messages          {verdict.messages:>8}",
        f"deliveries        {verdict.arrivals:>8}  requests read by the API, {verdict.refused} of them refused",
        f"  arrived         {verdict.delivered:>8}  messages",
        f"  superseded      {verdict.superseded:>8}  messages, by a newer snapshot that arrived",
        f"  processed by PHP{verdict.by_php:>8}  messages",
        f"lost              {len(verdict.lost):>8}",
        f"out of order      {len(verdict.out_of_order):>8}",
        f"duplicates        {sum(verdict.duplicates.values()) + len(verdict.unexplained):>8}",
        *(f"  {count:>6} {why}" for why, count in verdict.duplicates.most_common()),
        f"  {len(verdict.unexplained):>6} unexplained",
        "blows             " + ", ".join(f"{blow.value} {count} x" for blow, count in blows.items()),
    ]
    for name in ("lost", "out_of_order", "unexplained", "strangers"):
        found = getattr(verdict, name)
        lines += [f"{name.upper().replace('_', ' ')}: {each}" for each in found[:20]]
        if len(found) > 20:
            lines.append(f"... and {len(found) - 20} more")
    return "\n".join(lines)
