"""`sandbox`: a private database and API, to try the worker without a shop."""

from __future__ import annotations

import click


@click.command()
@click.option("--no-samples", is_flag=True, help="Start with empty queues.")
def sandbox(no_samples: bool) -> None:
    """Run a private MariaDB with Magento's queue tables and a local Zithara API, until Ctrl-C.

    \b
    Example:
      zithara-worker sandbox
    """
    from zithara_worker.sandbox.session import run_sandbox

    run_sandbox(samples=not no_samples)
