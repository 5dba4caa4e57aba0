"""Writes the files that the Debian package takes from the program: manual pages, shell completion, configuration.

    SOURCE_DATE_EPOCH=SECONDS python3 packaging/generated DIRECTORY

SOURCE_DATE_EPOCH is the date of the manual pages, so that two builds of the same sources give the same files.
"""

import os
import sys
from datetime import datetime, timezone
from pathlib import Path

from click.shell_completion import BashComplete, ZshComplete

from manual import command_manual, configuration_manual
from sample_configuration import packaged_configuration
from zithara_worker.commands.root import command

PROGRAM = "zithara-worker"
VARIABLE = "_ZITHARA_WORKER_COMPLETE"


def main() -> None:
    if len(sys.argv) != 2 or "SOURCE_DATE_EPOCH" not in os.environ:
        sys.exit("usage: SOURCE_DATE_EPOCH=SECONDS python3 packaging/generated DIRECTORY")
    target = Path(sys.argv[1])
    date = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), timezone.utc).strftime("%Y-%m-%d")
    bash, zsh = (shell(command, {}, PROGRAM, VARIABLE) for shell in (BashComplete, ZshComplete))
    for name, text in {
        f"{PROGRAM}.1": command_manual(command, date=date),
        f"{PROGRAM}.conf.5": configuration_manual(date=date),
        f"{PROGRAM}.conf": packaged_configuration(),
        # Not bash.source(): that runs the bash of the build host to find its version.
        f"completions/{PROGRAM}": bash.source_template % bash.source_vars(),
        f"_{PROGRAM}": zsh.source_template % zsh.source_vars(),
    }.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.strip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
