"""Writes docs/configuration.md from the table of keys:

python packaging/generated/configuration_page.py > docs/configuration.md
"""

from __future__ import annotations

import sys

from zithara_worker.settings.sections import KEYS, QUEUES, SECTIONS
from zithara_worker.settings.sources import DEFAULT_FILE
from zithara_worker.settings.values import ENVIRONMENT_PREFIX, Key, as_ini_text
from zithara_worker.topics import SHORT_NAMES, TOPICS


def configuration_page() -> str:
    """The whole text of docs/configuration.md."""
    parts = [_BEFORE.format(file=DEFAULT_FILE, prefix=ENVIRONMENT_PREFIX)]
    for section in SECTIONS:
        parts.append(f"## [{section}]\n\n| key | meaning | value | default |\n| --- | --- | --- | --- |\n")
        parts += [_table_row(key) for key in KEYS if key.section == section]
        parts.append("\n")
    variable = f"{ENVIRONMENT_PREFIX}{QUEUES}_".upper()
    parts.append(
        _AFTER.format(
            example=TOPICS[0],
            short=", ".join(f"`{name}`" for name in SHORT_NAMES),
            variable=variable + TOPICS[0].replace(".", "_").upper(),
            short_variable=variable + SHORT_NAMES[0].upper(),
        )
    )
    return "".join(parts)


def _table_row(key: Key) -> str:
    default = as_ini_text(key.default)
    value = f"{key.kind.wants}, in {key.unit}" if key.unit else key.kind.wants
    return f"| `{key.name}` | {key.doc} | {value} | {f'`{default}`' if default else ''} |\n"


_BEFORE = """\
# Configuration

This page is made from the table of keys in `zithara_worker/settings/sections.py`.

Every setting has a default, and most shops need only `[magento] root`: the rest stands in the shop. A value is taken
from the first of these that has it:

1. the command line (`--concurrency 32`)
2. the environment: `{prefix}<SECTION>_<KEY>`, for example `{prefix}DATABASE_HOST`
3. the INI file named by `--config`, else `{file}` if it exists
4. the shop: `app/etc/env.php` below `[magento] root` for `[database]`; then its settings (see below)
5. the default

`zithara-worker config` prints every value in force and where it came from, with secrets masked.
`zithara-worker config --sample` prints a file with every key and its default.

In the file a value ends with its line and is taken as it is: no quotes, no `%` or `$` to escape, comments only on lines
of their own. An unknown section, key or `{prefix}...` variable is an error, as is a value out of range; all that is
wrong is told at once.

A file that holds a secret should not be readable by everybody: `chmod 0640`, or better a file for the secret alone
(`password_file`, `client_secret_file`; its first line counts). A secret and its file exclude each other within one
source; from different sources the higher one counts, and likewise for `host` and `unix_socket`. A host or socket that
you give replaces the shop's whole address, port included.

"""

_AFTER = """\
## [queues]

The keys are topics, by their full or their short names ({short}); the values are the
names of their queues. Only needed where a queue is not called as the PHP module declares it. In the environment the
dots of a full name become underscores: `{variable}`, or `{short_variable}`.

    [queues]
    {example} = my_order_queue

## What the shop gives

Read at the start and watched while the worker runs; used only for keys that nobody else has set.

- `zithara_webhook/general/retry_limit` becomes `[retry] limit`
- `zithara_webhook/general/retry_delay` becomes `[retry] delay`, in seconds
- `zithara_webhook/queue/batch_size` becomes `[worker] batch_size`
- the active row of `zithara_webhook_config` gives `[zithara] client_id`, `client_secret` (decrypted with the key in
  `env.php` if need be) and `webhook_url`

The first three count only if an administrator has set them; the module's built-in defaults do not. One that is out of
range for the worker is left out, with a warning. Credentials or a webhook URL that cannot be used are an error,
because going on without them would lose or mislead events.

Two switches have no key here, and are obeyed within 5 seconds:

- `zithara_webhook/general/enabled = 0` stops taking messages until it is 1 again
- `zithara_webhook/general/debug = 1` logs at DEBUG, whatever `[logging] level` or `--log-level` says; when it is 0 or
  deleted, that level is in force again

All these settings and the lifetimes of Magento's cleanup (`system/mysqlmq/...`) are taken from the first of these that
has them, in the default scope (websites and stores are not read):

1. `app/etc/env.php`, `system` -> `default` (`bin/magento config:set --lock-env`)
2. `core_config_data` (`bin/magento config:set`, or the admin)
3. `app/etc/config.php`, `system` -> `default` (`config:set --lock-config`, `app:config:dump`)
4. Magento's default, or the module's

The two files are read only where `[magento] root` is set, and again when they change. Empty and null count as not
set. `CONFIG__DEFAULT__...` variables of PHP's environment cannot be seen.

A value that only PHP can work out (`getenv()` in `env.php`) is unknown to the worker, which says so in its log and in
`doctor`. It is passed over, and the next of the list counts; only a lifetime of new messages is taken to be 60
minutes, because an event whose lifetime is taken for too long is deleted undelivered. For the same reason the shorter
lifetime is assumed where `core_config_data` and `config.php` differ: the messages are kept alive a little more often
than they need.

## When the configuration changes

A running worker reads its configuration again on SIGHUP, and when the shop's settings or credentials change. The new
one is tried out first: every value, the files it names, a session on its database, the shop's rows, TLS. Only then
what is in flight is finished, and the worker goes on with it. One that cannot be used leaves the one in force: the
log says why (`reload_failed`, at once and once a minute), `/healthz` and the status page repeat it, and the worker
tries again every 5 seconds until it can be used. Only at its very first start, where none is in force, the worker
ends with exit code 78.

A database that refuses the user while the worker runs (a rotated password) is waited for like one that is away; the
configuration, `password_file` and `env.php` included, is read again meanwhile, so that the new password is found.
"""


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
