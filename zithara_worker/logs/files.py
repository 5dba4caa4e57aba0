"""How a file is opened that lines are appended to: log and audit file. Knows the file system and nothing of lines.

Such files may lie in a directory that others can write, as the shop's var/log, which belongs to the web server. What
they put there under the file's name must neither stop the worker (a FIFO) nor direct it elsewhere (a link).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_for_append(path: Path) -> int:
    """A descriptor of the regular file `path`, made for owner and group when it is not there. Never waits.

    Raises OSError where it cannot be opened, is a symbolic link, is no regular file, or has a second name, which is
    how somebody who may not write a file of ours could have it written under another name.
    """
    try:
        # Opened without waiting, a FIFO that nobody reads is refused with ENXIO.
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
    """Whether `path` itself, not what a link points to, is the open file; False once logrotate has moved it away."""
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
