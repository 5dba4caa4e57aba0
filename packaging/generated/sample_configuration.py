"""The configuration file that the Debian package installs in /etc: every key explained, user and password file set.

Until the password file exists, the worker exits with a line that names it. Supervisor then shows FATAL, and no worker
connects to a database that nobody has configured.
"""

from __future__ import annotations

from install_steps import PASSWORD_FILE, STEPS
from zithara_worker.commands.config import sample_file

__all__ = ["PASSWORD_FILE", "packaged_configuration"]

#: Key of [database] -> what the package sets.
_SET = {"user": "zithara_worker", "password_file": PASSWORD_FILE}

#: What is left to do beside this file.
_THEN = "".join(f"#   {line}\n" for step in STEPS[1:] for line in step.commands if not line.startswith("editor "))
_HEAD = f"""\
# zithara-worker: configuration. Every key with its default; remove the # to set one.
# Fill in:
#
#   [database]  where the shop's database is, and the worker's own user there.
#               Or set [magento] root and remove user and password_file below: the shop's app/etc/env.php then gives
#               all of it. The user zithara-worker must be able to read that file.
#   [zithara]   nothing, if client id, client secret and webhook URL are saved in the Zithara form of the shop. If the
#               shop keeps them encrypted, set [magento] root, or client_id and client_secret here.
#
# Then, as root ('magento' stands for the shop's database):
{_THEN}#
# 'zithara-worker config' shows each effective value with its source; 'supervisorctl signal HUP zithara-worker:*' makes
# running workers read this file again.
# More: man zithara-worker.conf, /usr/share/doc/zithara-worker/install.md
"""


def packaged_configuration() -> str:
    """The sample file with a head of its own and the keys of `_SET`. Raises ValueError when one of them is missing."""
    _, _, text = sample_file().partition("\n")
    head, mark, rest = text.partition("[database]\n")
    section, mark_after, tail = rest.partition("\n[")
    for name, value in _SET.items():
        lines = section.split("\n")
        index = next((i for i, line in enumerate(lines) if line.startswith(f"#{name} =")), None)
        if index is None:
            raise ValueError(f"the sample file has no [database] {name}")
        lines[index] = f"{name} = {value}"
        section = "\n".join(lines)
    return _HEAD + head + mark + section + mark_after + tail
