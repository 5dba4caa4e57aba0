"""Errors, split by who must act.

    ZitharaWorkerError
      ConfigurationError     the operator fixes a file, an option or the environment   (exit 78)
      DatabaseUnavailable    wait and retry; nothing is wrong with any message          (exit 75)
        Contention           others hold what we need: the session is good, and nothing is in doubt
        DatabaseRefused      wrong user, password or name: a configuration error, too; a worker at work waits
      ShopError              the shop lacks something: `doctor` and the text name the remedy (exit 1)
        SchemaOutdated       our tables are of an older version: `consume` waits for `install`
      MessageRejected        one message cannot become a request; the others are not concerned

What a delivery may bring is not an error but an `Outcome` (see `messages`). `cli/` alone turns classes into exit codes.
"""

from __future__ import annotations


class ZitharaWorkerError(Exception):
    """Base of everything this program raises on purpose; the text names the thing, what was seen and what to do."""


class ConfigurationError(ZitharaWorkerError):
    """A setting is missing, unknown, malformed or out of range."""


class DatabaseUnavailable(ZitharaWorkerError):
    """The database cannot be reached, or the connection was lost; what was in doubt must be checked again."""


class Contention(DatabaseUnavailable):
    """Others were faster, several times: the transaction was rolled back and may simply be run again later."""


class DatabaseRefused(ConfigurationError, DatabaseUnavailable):
    """The server does not let us in: wrong at a start, but a worker at work waits for its new password."""


class ShopError(ZitharaWorkerError):
    """The shop's database lacks a table, a row or a privilege that the worker needs."""


class SchemaOutdated(ShopError):
    """The worker's own tables were made by an older version."""


class MessageRejected(ZitharaWorkerError):
    """A message cannot be decoded or fails validation: `code` is stable and documented, `detail` is for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
