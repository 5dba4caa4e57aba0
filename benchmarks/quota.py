"""A share of a processor for a process and its threads, by a control group of its own.

On a machine with two cores that the database and the API need as well, two busy workers get no second core; with half a
core each they get what they are said to get, and the ratio is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: Where version 1 of control groups has its CPU controller, and where version 2 is.
_VERSION_1 = Path("/sys/fs/cgroup/cpu")
_VERSION_2 = Path("/sys/fs/cgroup")
_PERIOD_US = 20_000


class Unavailable(Exception):
    """This machine, or this user, cannot limit processes; the text says why."""


@contextmanager
def share_of(commands: Sequence[Sequence[str]], cores: float) -> Iterator[list[list[str]]]:
    """The commands, changed so that each runs on so much of a core. Raises Unavailable."""
    with ExitStack() as made:
        try:
            groups = [
                _group(made, f"zithara-bench-{number}", int(_PERIOD_US * cores)) for number in range(len(commands))
            ]
        except OSError as error:
            raise Unavailable(f"no control group for a share of a core: {error}") from error
        yield [
            ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs"), *command]
            for group, command in zip(groups, commands, strict=True)
        ]


def _group(made: ExitStack, name: str, quota_us: int) -> Path:
    """A new group; `made` removes it."""
    first_version = (_VERSION_1 / "cgroup.procs").exists()
    group = (_VERSION_1 if first_version else _VERSION_2) / name
    group.mkdir(exist_ok=True)
    made.callback(group.rmdir)
    if first_version:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
    return group
