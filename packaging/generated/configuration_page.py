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

This page is generated from the table of keys in `zithara_worker/settings/sections.py`.

Every setting has a default, and most shops need only `[magento] root`, because the other values stand in the shop. A
value is taken from the first of these sources that has it:

1. the command line (`--concurrency 32`)
2. the environment: `{prefix}<SECTION>_<KEY>`, for example `{prefix}DATABASE_HOST`
3. the INI file named by `--config`, else `{file}` if it exists
4. the shop: `app/etc/env.php` below `[magento] root` for `[database]`; then the shop's settings (see below)
5. the default

`zithara-worker config` prints every effective value with its source, and masks secrets.
`zithara-worker config --sample` prints a file with every key and its default.

In the file, a value ends with its line and is taken literally: without quotes, and without an escape for `%` or `$`.
Comments stand on lines of their own. An unknown section, key or `{prefix}...` variable is an error, and so is a value
out of range; all errors are reported together.

Do not let everybody read a file that holds a secret: `chmod 0640`. Better, keep the secret in a file of its own
(`password_file`, `client_secret_file`), of which only the first line is used. One source may give a secret or its file,
not both; of two sources, the one with the higher precedence wins. The same holds for `host` and `unix_socket`. A host
or socket that you give replaces the shop's whole address, including the port.

"""

_AFTER = """\
## [queues]

The keys are topics, by their full or their short names ({short}); the values are the
names of their queues. A key is needed only if a queue has another name than the PHP module declares. In the environment
the dots of a full name become underscores: `{variable}`, or `{short_variable}`.

    [queues]
    {example} = my_order_queue

## What the shop gives

The worker reads these values at its start and looks for changes while it runs. They are used only for keys that no
source of higher precedence sets.

- `zithara_webhook/general/retry_limit` becomes `[retry] limit`
- `zithara_webhook/general/retry_delay` becomes `[retry] delay`, in seconds
- `zithara_webhook/queue/batch_size` becomes `[worker] batch_size`
- the active row of `zithara_webhook_config` gives `[zithara] client_id`, `client_secret` (decrypted with the key in
  `env.php` if need be) and `webhook_url`

The first three are used only if an administrator has set them; the module's built-in defaults are not. A value out of
the worker's range is ignored with a warning. Credentials or a webhook URL that cannot be used are an error, because
without them events would be lost or sent to the wrong place.

Two switches of the shop have no key here. They take effect within 5 seconds:

- `zithara_webhook/general/enabled = 0` stops the claiming of messages until it is 1 again
- `zithara_webhook/general/debug = 1` logs at DEBUG, whatever `[logging] level` or `--log-level` says; when it is 0 or
  deleted, that level is in force again

All these settings and the lifetimes of Magento's cleanup (`system/mysqlmq/...`) are taken from the first of these
sources that has them, in the default scope (websites and stores are not read):

1. `app/etc/env.php`, `system` -> `default` (`bin/magento config:set --lock-env`)
2. `core_config_data` (`bin/magento config:set`, or the admin)
3. `app/etc/config.php`, `system` -> `default` (`config:set --lock-config`, `app:config:dump`)
4. Magento's default, or the module's

`bin/magento config:set` knows only paths that have a field in the admin. Those of the module have none: write
`zithara_webhook/...` into `core_config_data`, or by hand into `app/etc/env.php`, then `bin/magento cache:flush`:

    INSERT INTO core_config_data (scope, scope_id, path, value)
      VALUES ('default', 0, 'zithara_webhook/general/enabled', '1') ON DUPLICATE KEY UPDATE value = VALUES(value);

The two files are read only if `[magento] root` is set, and again when they change. Empty and null values count as not
set. The worker cannot see `CONFIG__DEFAULT__...` variables in PHP's environment.

A value that cannot be determined without running PHP (`getenv()` in `env.php`) is unknown to the worker. The log and
`doctor` report it, and the next source of the list is used. The lifetime of new messages is an exception: an unknown
one is assumed to be 60 minutes, because a message whose lifetime is overestimated would be deleted undelivered. For the
same reason the shorter lifetime is assumed if `core_config_data` and `config.php` differ; the worker then keeps
messages from the cleanup a little more often than necessary.

## When the configuration changes

A running worker reads its configuration again on SIGHUP, and when the shop's settings or credentials change. It first
tries the new configuration: every value, the files that it names, a database session, the shop's rows, TLS. Only if all
of it works, the worker finishes the requests in flight and continues with the new configuration. Otherwise the old one
stays in force: the log says why (`reload_failed`, at once and then once a minute), `/healthz` and the status page
repeat it, and the worker tries again every 5 seconds. Only at its first start, when there is no old configuration, the
worker ends with exit code 78.

A database that refuses the user while the worker runs (because the password was changed) is waited for like one that
cannot be reached. Meanwhile the worker reads the configuration again, with `password_file` and `env.php`, so that it
finds the new password.
"""


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
