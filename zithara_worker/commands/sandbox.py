"""`sandbox`: a private database and API, to try the worker without a shop."""

from __future__ import annotations

import click


@click.command()
@click.option("--no-samples", is_flag=True, help="Start with empty queues.")
@click.option("--rabbitmq", is_flag=True, help="A shop that publishes to a private RabbitMQ, for 'relay'.")
def sandbox(no_samples: bool, rabbitmq: bool) -> None:
    """Run a private MariaDB with Magento's queue tables and a local Zithara API, until Ctrl-C.

    \b
    Examples:
      zithara-worker sandbox
      zithara-worker sandbox --rabbitmq
    """
    from zithara_worker.sandbox.session import run_sandbox

    run_sandbox(samples=not no_samples, rabbitmq=rabbitmq)
