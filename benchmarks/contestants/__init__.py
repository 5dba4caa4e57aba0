"""What is compared, one program each; all read the same requests or the same queue."""

from __future__ import annotations

import json
import time


def ready() -> None:
    """Called by a contestant when its imports are done: what counts begins now."""
    print(json.dumps({"ready": time.process_time()}), flush=True)
