"""The shop's settings that stand in its files: `system` in app/etc/env.php and app/etc/config.php.

`bin/magento config:set --lock-env` and `--lock-config` write them there. Only the default scope is read: the worker
serves the whole shop. Knows no table, and not what a setting means; see `shop`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from zithara_worker.errors import ConfigurationError
from zithara_worker.shop.php_array import Unknown, Value, read_returned_array

log = logging.getLogger(__name__)

#: Seconds that a file which cannot be read stays silent between two log lines.
_LOG_SECONDS = 60.0


class SettingsFile:
    """One of the two files, read again when it has changed.

    A file that cannot be read leaves in force what it said before: it may be half written at this moment. If it could
    never be read, each of its settings is unknown. `required`: its absence is an error, too.
    """

    def __init__(self, path: Path, *, required: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._required = required
        self._monotonic = monotonic
        self._seen: tuple[int, int, int] | None = None
        self._tree: Value = None
        self._was_read = False
        self._complain_at = 0.0

    def refresh(self) -> None:
        """Looks whether the file has changed. Never raises; says in the log, once a minute, what cannot be read."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                self._tree, self._seen, self._was_read = read_returned_array(self._path), seen, True
        except FileNotFoundError as error:
            if self._required:
                self._failed(f"there is no file {error.filename}")
            else:
                self._tree, self._seen, self._was_read = None, None, True
        except (ConfigurationError, OSError) as error:
            self._failed(str(error))

    def get(self, path: str) -> tuple[str | Unknown | None, str]:
        """A setting as PHP would write it in core_config_data, and where it stands; None: the file gives none, or null.

        `path` as in core_config_data: "system/mysqlmq/new_messages_lifetime".
        """
        value = self._tree
        for step in ("system", "default", *path.split("/")):
            if not isinstance(value, dict):
                break
            # A key that only PHP knows may be this one.
            value = value.get(step, next((key for key in value if isinstance(key, Unknown)), None))
        if isinstance(value, bool):
            value = int(value)
        if isinstance(value, (int, float)):
            value = str(value)
        if isinstance(value, dict):
            value = Unknown(line=1, why="an array stands there")
        return value, f"{self._path} system/default/{path}"

    def _failed(self, problem: str) -> None:
        if not self._was_read:
            self._tree = Unknown(line=1, why="the file cannot be read")
        if self._monotonic() >= self._complain_at:
            self._complain_at = self._monotonic() + _LOG_SECONDS
            log.warning(
                "the shop's settings in %s cannot be read; %s",
                self._path,
                "what it said before stays in force" if self._was_read else "each of them is taken as unknown",
                extra={"event": "shop_file_unreadable", "file": str(self._path), "detail": problem},
            )


class DeploymentConfig:
    """Both files of the shop below `root`."""

    def __init__(self, root: Path) -> None:
        self.env = SettingsFile(root / "app" / "etc" / "env.php", required=True)
        self.config = SettingsFile(root / "app" / "etc" / "config.php", required=False)

    def refresh(self) -> None:
        self.env.refresh()
        self.config.refresh()


def deployment_config(root: Path | None) -> DeploymentConfig | None:
    """The files of the shop in `root`; None where [magento] root is not set."""
    return None if root is None else DeploymentConfig(root)
