"""Opens the log file and the audit file for appending.

They may lie in a directory that others can write, such as the shop's var/log, which belongs to the web server. Whatever
somebody puts there under the file's name must neither block the worker (a FIFO) nor make it write elsewhere (a link).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_for_append(path: Path) -> int:
    """A descriptor of the regular file `path`, created with mode 0640 where it does not exist. Never blocks.

    Raises OSError where it cannot be opened, is a symbolic link, is not a regular file, or has a second name: through a
    hard link, somebody could make the worker write into a file that he or she may not write.
    """
    try:
        # With O_NONBLOCK, opening a FIFO that has no reader fails with ENXIO instead of blocking.
        descriptor = os.open(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "it is a symbolic link, which is not followed") from error
        if error.errno == errno.ENXIO:
            raise OSError(error.errno, "it is no regular file") from error
        raise
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    if stat.S_ISREG(found.st_mode):
        raise OSError(errno.EMLINK, "it has a second name (a hard link)")
    raise OSError(errno.EINVAL, "it is no regular file")


def is_named(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the open file; False once logrotate has moved it away. Links are not followed."""
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
