"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    #: It could not be looked at: neither good nor bad is known
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `doctor`. `check`: a stable documented name; `remedy`: what to run or set, empty when all is well."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, level=Level.OK, found=found)


def unchecked(check: str, why: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.UNCHECKED, found=why, remedy=remedy)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.WARNING, found=found, remedy=remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.FAILED, found=found, remedy=remedy)
