"""How the program is typed and printed: parses, calls one function of the library, renders what it returns.

This package alone turns error classes into exit codes.
"""

from __future__ import annotations

from zithara_worker.cli.root import main

__all__ = ["main"]
