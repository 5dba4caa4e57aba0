"""Runs real PHP."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def find_php() -> str:
    """The path of `php`. A machine without it fails the test, it does not skip it."""
    found = shutil.which("php")
    if found is None:
        raise AssertionError("no php on this machine: apt-get install php-cli php-mysql (scripts/test does it)")
    return found


def run_php(script: Path | str, *arguments: str, stdin: str = "", within: float = 30.0) -> str:
    """Runs a script file (Path) or code without the opening tag (str); its standard output.

    Warnings count: display_errors goes to stderr, and anything there, or an exit code, is an AssertionError.
    """
    source: Sequence[str] = [str(script)] if isinstance(script, Path) else ["-r", script]
    done = subprocess.run(
        [find_php(), "-d", "display_errors=stderr", "-d", "error_reporting=-1", *source, "--", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=within,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, f"php exited {done.returncode}: {done.stderr}{done.stdout}"
    return done.stdout
