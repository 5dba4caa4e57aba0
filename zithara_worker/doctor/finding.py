"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `doctor`. `check`: a stable documented name; `remedy`: what to run or set, empty when all is well."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, level=Level.OK, found=found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.WARNING, found=found, remedy=remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.FAILED, found=found, remedy=remedy)
