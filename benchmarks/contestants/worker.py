"""The worker itself, by its own command. Arguments: as for `zithara-worker`."""

from __future__ import annotations

import zithara_worker.worker.worker  # noqa: F401 - what the command imports later anyway
from benchmarks.contestants import ready
from zithara_worker.commands import main

if __name__ == "__main__":
    ready()
    main()
