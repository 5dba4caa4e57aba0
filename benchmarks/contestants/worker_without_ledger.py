"""The worker, made to know no topic of which the delivery ledger keeps rows. Arguments: as for `zithara-worker`."""

from __future__ import annotations

import zithara_worker.worker.building
import zithara_worker.worker.worker
from benchmarks.contestants import ready
from zithara_worker.commands import main

if __name__ == "__main__":
    zithara_worker.worker.building.LEDGER_TOPICS = ()
    ready()
    main()
