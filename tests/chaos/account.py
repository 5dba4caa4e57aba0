"""What became of every message, and the verdict. Pure: takes what the database and the API saw, and judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.php import Held
from chaos.world import Arrival, Blow, Fate, Misfortune, Poison, World
from zithara_worker.queue.statuses import Status

#: A request may be read a little after its sender was killed: it lay in the socket.
IN_THE_SOCKET_SECONDS = 1.0
#: No message of a healthy group may wait longer for its first request. A lease, a stop, an outage of the database, a
#: retry's longest delay, a breaker's first pauses and an operator's pause together stay below it; a message that stops
#: others does not.
STARVED_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A message as the database has it in the end. `message_id`: its place among all messages, ids that began again
    behind those before. `failed`: its recorded reason, if it has one, and its `attempts`; `discarded`, `retried`,
    `forced` (behind newer ones too): by an operator. `committed_at`: monotonic, None where nobody knows.

    `state`: it tells what an order, customer or cart is, and nothing older may come over it; `content`: what it tells;
    `create`: it tells an order's customer and items besides. `orphan`: it came back from a PHP consumer that had died.
    `ended_at`: when its cart had become an order, monotonic, None if it has not."""

    key: str
    message_id: int
    group: str
    coalesced: bool
    status: int
    state: bool = False
    create: bool = False
    orphan: bool = False
    ended_at: float | None = None
    failed: str = ""
    attempts: int = 0
    discarded: bool = False
    retried: bool = False
    forced: bool = False
    committed_at: float | None = None
    content: int = 0


@dataclass(slots=True)
class Verdict:
    """`duplicates`: explanation -> how many arrivals beyond the first were acted on. The lists name what is wrong."""

    messages: int = 0
    delivered: int = 0
    superseded: int = 0
    unchanged: int = 0
    overtaken: int = 0
    inactive: int = 0
    by_php: int = 0
    arrivals: int = 0
    refused: int = 0
    duplicates: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    #: What a dead PHP consumer had held was sent behind something newer that tells all of it
    older_over_newer: list[str] = field(default_factory=list)
    #: Why such a message was sent all the same -> how many
    behind: Counter[str] = field(default_factory=Counter)
    #: Carts that were sent though they had become orders before the message was published
    reminded: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    #: Poison that did not end in ERROR by its own attempts, and has no other good end
    unfair: list[str] = field(default_factory=list)
    starved: list[str] = field(default_factory=list)
    #: Groups whose newest message tells something else than what the API acted on last: its news was skipped
    outdated: list[str] = field(default_factory=list)
    #: Such groups that the ledger has marked for reconcile, because an older message was sent behind a newer one
    marked: int = 0
    poisoned: Counter[str] = field(default_factory=Counter)
    #: Seconds from COMMIT to the first request, of the groups without poison
    waits: list[float] = field(default_factory=list)

    @property
    def saved(self) -> int:
        """Requests that the API was spared."""
        return self.superseded + self.unchanged + self.overtaken + self.inactive

    @property
    def good(self) -> bool:
        return not any(getattr(self, name) for name in FINDINGS)


FINDINGS = (
    "lost",
    "out_of_order",
    "older_over_newer",
    "outdated",
    "reminded",
    "unexplained",
    "strangers",
    "unfair",
    "starved",
)


def judge(
    rows: Sequence[Row],
    world: World,
    php: Mapping[int, Held] | None = None,
    *,
    attempt_limit: int = 1,
    marked: Collection[str] = (),
) -> Verdict:
    """Lost: not COMPLETE at the end, or COMPLETE though the API never acted on it and nothing newer replaced it.

    Out of order: the API acted on a message after it had acted on a newer one of the group. Duplicates: acted on again;
    explained by what happened to the earlier request, or to its sender or the database in between.

    `php`: what a PHP consumer of the same queue did, by message id. It processes without asking for order, so the
    groups that it had a hand in are not judged for order.

    Poison ends in ERROR, with a reason, after all of `attempt_limit` attempts, or at once if the API rejects it; or an
    operator has discarded it, or a newer snapshot has replaced it. Starved: a message of a group without poison whose
    first request came more than STARVED_SECONDS after its COMMIT. Outdated: an order, cart or customer of which the API
    was told last something else than its newest message tells, unless it is among the groups `marked` for reconcile.
    """
    php = php or {}
    verdict = Verdict(messages=len(rows), arrivals=len(world.order))
    by_key = {row.key: row for row in rows}
    verdict.strangers = [f"{key} arrived, but is not in the database" for key in world.arrivals if key not in by_key]
    newest = _newest_acted_on(rows, world)
    #: Group -> what the API was told of it, in the order in which it acted
    told: dict[str, list[int]] = {}
    for key in _acted_on(world):
        if key in by_key:
            told.setdefault(by_key[key].group, []).append(by_key[key].content)
    #: Snapshots that tell what the API had acted on before: they replace older ones, as if they had been sent
    unchanged = {
        row.message_id
        for row in rows
        if row.coalesced and row.status == Status.COMPLETE and row.content in told.get(row.group, ())
    }
    creates = _newest_acted_on([row for row in rows if row.create], world)
    unchanged_of = {
        row.group: row.message_id for row in sorted(rows, key=lambda row: row.message_id) if row.message_id in unchanged
    }
    for row in rows:
        arrivals = world.arrivals.get(row.key, ())
        acted_on = [arrival for arrival in arrivals if arrival.fate is not Fate.REFUSED]
        verdict.refused += len(arrivals) - len(acted_on)
        if row.key in world.poison:
            _judge_poison(row, world.poison[row.key], len(arrivals), newest, attempt_limit, verdict)
        elif row.status != Status.COMPLETE:
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
        elif row.ended_at is not None and row.committed_at is not None and row.committed_at > row.ended_at:
            verdict.inactive += 1
        elif row.orphan and row.state and (creates if row.create else newest).get(row.group, 0) > row.message_id:
            verdict.overtaken += 1
        elif row.coalesced and newest.get(row.group, 0) > row.message_id:
            verdict.superseded += 1
        elif row.message_id in unchanged:
            verdict.unchanged += 1
        elif row.coalesced and unchanged_of.get(row.group, 0) > row.message_id:
            verdict.superseded += 1
        elif row.ended_at is not None:
            verdict.inactive += 1
        else:
            verdict.lost.append(f"{row.key} ({row.group}) is COMPLETE, but the API never acted on it")
        for before, again in pairwise(acted_on):
            why = explanation(before, again, world.misfortunes)
            if why:
                verdict.duplicates[why] += 1
            else:
                verdict.unexplained.append(f"{row.key} ({row.group}): {before} and again {again}")
    poisoned = {row.group for row in rows if row.key in world.poison}
    for row in rows:
        if row.group not in poisoned and row.committed_at is not None and row.key in world.arrivals:
            waited = world.arrivals[row.key][0].at - row.committed_at
            verdict.waits.append(waited)
            if waited > STARVED_SECONDS:
                verdict.starved.append(f"{row.key} ({row.group}) waited {waited:.1f} s for its first request")
        sent_at = [arrival.at for arrival in world.arrivals.get(row.key, ())]
        if row.ended_at is not None and row.committed_at is not None and row.committed_at > row.ended_at and sent_at:
            verdict.reminded.append(f"{row.key} ({row.group}) was sent {sent_at[0] - row.ended_at:.1f} s after its end")
    _judge_last_states(rows, told, poisoned, marked, verdict)
    by_php = {row.group for row in rows if row.message_id in php}
    _judge_order({key: row for key, row in by_key.items() if row.group not in by_php}, world, verdict)
    return verdict


def _judge_last_states(
    rows: Sequence[Row],
    told: Mapping[str, Sequence[int]],
    poisoned: Collection[str],
    marked: Collection[str],
    verdict: Verdict,
) -> None:
    # What went wrong with poison, or was put before newer data by an operator, is told elsewhere.
    excused = {*poisoned, *(row.group for row in rows if row.forced or row.retried or row.ended_at is not None)}
    orphaned = {row.group for row in rows if row.orphan}
    for group, row in {row.group: row for row in sorted(rows, key=lambda each: each.message_id)}.items():
        if not row.state or group in excused or told.get(group, [row.content])[-1] == row.content:
            continue
        if group in marked and group in orphaned:
            verdict.marked += 1
        else:
            verdict.outdated.append(f"{row.key} ({group}) tells {row.content}, the API was told {told[group]}")


def _judge_poison(
    row: Row, poison: Poison, arrivals: int, newest: Mapping[str, int], attempt_limit: int, verdict: Verdict
) -> None:
    status = Status(row.status)
    if status is Status.COMPLETE and row.discarded:
        verdict.poisoned["discarded by an operator"] += 1
    elif status is Status.COMPLETE and row.coalesced and newest.get(row.group, 0) > row.message_id:
        verdict.superseded += 1
        verdict.poisoned["superseded"] += 1
    elif status is not Status.ERROR:
        verdict.lost.append(f"{row.key} ({row.group}), poison ({poison.value}), is {status.name}")
    else:
        verdict.poisoned[poison.value] += 1
        wanted = 1 if poison is Poison.REJECTED else attempt_limit
        if not row.failed or row.attempts < wanted or not arrivals:
            verdict.unfair.append(
                f"{row.key} ({row.group}), poison ({poison.value}), is in ERROR for {row.failed or 'no reason'} after "
                f"{row.attempts} attempts and {arrivals} requests; {wanted} attempts are its own"
            )


def explanation(before: Arrival, again: Arrival, misfortunes: Collection[Misfortune]) -> str | None:
    """Why a message that had been acted on was sent again; None when nothing explains it."""
    if before.fate is Fate.ANSWER_LOST:
        return f"fault: {before.fault}"
    for each in misfortunes:
        hit = each.slot is None or each.slot == before.slot
        if hit and each.at <= again.at and each.until >= before.at - IN_THE_SOCKET_SECONDS:
            return each.blow.value
    return None


def _acted_on(world: World) -> list[str]:
    """The messages that the API acted on, once for each time, in that order."""
    seen: Counter[str] = Counter()
    keys = []
    for key in world.order:
        if world.arrivals[key][seen[key]].fate is not Fate.REFUSED:
            keys.append(key)
        seen[key] += 1
    return keys


def _newest_acted_on(rows: Sequence[Row], world: World) -> Mapping[str, int]:
    newest: dict[str, int] = {}
    for row in rows:
        if any(arrival.fate is not Fate.REFUSED for arrival in world.arrivals.get(row.key, ())):
            newest[row.group] = max(newest.get(row.group, 0), row.message_id)
    return newest


def _judge_order(by_key: Mapping[str, Row], world: World, verdict: Verdict) -> None:
    """Judged by when requests were read, and for every one of them, refused ones too."""
    newest: dict[str, Row] = {}
    creates: dict[str, int] = {}
    #: Groups whose newest message was acted on with an answer: it will not be sent again
    answered: set[str] = set()
    seen: Counter[str] = Counter()
    for key in world.order:
        row = by_key.get(key)
        if row is None:
            continue
        arrival = world.arrivals[key][seen[key]]
        seen[key] += 1
        before = newest.get(row.group)
        # What an operator puts before a newer one that failed goes first, and the newer one again after it.
        excused = row.forced or (row.retried and row.group not in answered)
        if before is not None and row.message_id < before.message_id and not excused:
            found = (
                f"{key} ({row.group}) came after {before.key}: {arrival}; all of the older: {world.arrivals[key]}; "
                f"all of the newer: {world.arrivals[before.key]}; {_what_befell(arrival, world.misfortunes)}"
            )
            if not (row.orphan and row.state):
                verdict.out_of_order.append(found)
            elif row.create and creates.get(row.group, 0) < row.message_id:
                verdict.behind["nothing newer tells its items"] += 1
            elif len(world.arrivals[before.key]) > seen[before.key]:
                verdict.behind["the newer one was sent again"] += 1
            else:
                verdict.older_over_newer.append(found)
        if arrival.fate is Fate.REFUSED:
            continue
        if row.create:
            creates[row.group] = max(row.message_id, creates.get(row.group, 0))
        if before is None or row.message_id >= before.message_id:
            if before is None or row.message_id > before.message_id:
                newest[row.group] = row
                answered.discard(row.group)
            if arrival.fate is Fate.ANSWERED:
                answered.add(row.group)


def _what_befell(arrival: Arrival, misfortunes: Collection[Misfortune]) -> str:
    near = [each for each in misfortunes if each.at <= arrival.at and each.until >= arrival.at - 10]
    return "in the 10 s before: " + (", ".join(map(str, near)) or "nothing")


def report(verdict: Verdict, blows: Mapping[Blow, int]) -> str:
    lines = [
        f"messages          {verdict.messages:>8}",
        f"deliveries        {verdict.arrivals:>8}  requests read by the API, {verdict.refused} of them refused",
        f"  arrived         {verdict.delivered:>8}  messages",
        f"  processed by PHP{verdict.by_php:>8}  messages",
        f"requests saved    {verdict.saved:>8}",
        f"  superseded      {verdict.superseded:>8}  messages, by a newer snapshot that arrived",
        f"  unchanged       {verdict.unchanged:>8}  messages, that told what the API had acted on before",
        f"  overtaken       {verdict.overtaken:>8}  messages, that dead PHP consumers had held",
        f"  cart_inactive   {verdict.inactive:>8}  messages, of carts that had become orders",
        f"lost              {len(verdict.lost):>8}",
        f"out of order      {len(verdict.out_of_order):>8}",
        f"older over newer  {len(verdict.older_over_newer):>8}",
        *(f"  {count:>6} explained: {why}" for why, count in verdict.behind.most_common()),
        f"news skipped      {len(verdict.outdated):>8}  entities; {verdict.marked} others are marked for reconcile",
        f"sent after the end{len(verdict.reminded):>8}  carts",
        f"duplicates        {sum(verdict.duplicates.values()) + len(verdict.unexplained):>8}",
        *(f"  {count:>6} {why}" for why, count in verdict.duplicates.most_common()),
        f"  {len(verdict.unexplained):>6} unexplained",
        f"poison            {sum(verdict.poisoned.values()):>8}  messages: "
        + (", ".join(f"{why} {count} x" for why, count in sorted(verdict.poisoned.items())) or "none"),
        "waited            " + _waits(verdict.waits),
        "blows             " + ", ".join(f"{blow.value} {count} x" for blow, count in blows.items()),
    ]
    for name in FINDINGS:
        found = getattr(verdict, name)
        lines += [f"{name.upper().replace('_', ' ')}: {each}" for each in found[:20]]
        if len(found) > 20:
            lines.append(f"... and {len(found) - 20} more")
    return "\n".join(lines)


def _waits(seconds: Sequence[float]) -> str:
    if not seconds:
        return "nobody"
    ordered = sorted(seconds)
    at = {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in _SHARES.items()}
    return ", ".join(f"{name} {value:.2f} s" for name, value in at.items()) + " (groups without poison)"


_SHARES = {"p50": 0.5, "p99": 0.99, "longest": 1.0}
