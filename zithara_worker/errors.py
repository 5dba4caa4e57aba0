"""Errors, split by who must act.

    ZitharaWorkerError
      ConfigurationError     the operator corrects a file, an option or the environment (exit 78)
      DatabaseUnavailable    the program waits and tries again; no message is wrong     (exit 75)
        Contention           other sessions were faster; the session is good, and nothing is in doubt
        DatabaseRefused      wrong user, password or name: also a configuration error; a running worker waits
      BrokerUnavailable      RabbitMQ cannot be reached, or refuses us; the relay waits and tries again (exit 1)
      ShopError              the shop lacks something; the text and `doctor` name the remedy (exit 1)
        NotGranted           the database account lacks a privilege
        Unstorable           the server cannot hold a value, whatever the transaction
        SchemaOutdated       the worker's tables are of an older version: `consume` waits for `install`
      MessageRejected        one message cannot become a request; the others are not affected

The result of a delivery is no error but an `Outcome` (see `messages`). Only `commands` turns classes into exit codes.
"""

from __future__ import annotations


class ZitharaWorkerError(Exception):
    """Base of all errors that this program raises on purpose. The text names the thing, what was seen, what to do.

    `remedy`: what to do, where it can be told apart from what was `seen`; else "".
    """

    def __init__(self, seen: str = "", remedy: str = "") -> None:
        super().__init__(f"{seen}: {remedy}" if remedy else seen)
        self.seen = seen
        self.remedy = remedy


class ConfigurationError(ZitharaWorkerError):
    """A setting is missing, unknown, malformed or out of range."""


class DatabaseUnavailable(ZitharaWorkerError):
    """The database cannot be reached, or the connection was lost: whether the last COMMIT succeeded must be checked."""


class Contention(DatabaseUnavailable):
    """Several tries met a deadlock or lock wait timeout; the transaction was rolled back and can be run again later."""


class DatabaseRefused(ConfigurationError, DatabaseUnavailable):
    """The server refuses the credentials: an error at the start; a running worker waits until they are right again."""


class BrokerUnavailable(ZitharaWorkerError):
    """RabbitMQ cannot be reached, or refuses the user or the virtual host."""


class ShopError(ZitharaWorkerError):
    """The shop's database lacks a table, a row or a privilege that the program needs."""


#: The remedy where the worker's own account lacks a privilege on purpose.
AS_OPERATOR = (
    "do it as the operator's account, since the worker's own has no right to that. 'zithara-worker install --print "
    "--operator ACCOUNT' shows its grants; ZITHARA_WORKER_DATABASE_USER and ZITHARA_WORKER_DATABASE_PASSWORD_FILE name "
    "it for one command"
)


class NotGranted(ShopError):
    """The account lacks a privilege. `seen`: what the server says."""


class Unstorable(ShopError):
    """The server cannot hold one of the statement's values: its characters, or its length."""


class SchemaOutdated(ShopError):
    """The worker's own tables are of an older version."""


class MessageRejected(ZitharaWorkerError):
    """A message cannot be decoded or fails validation. `code`: of `reasons`; `detail`: for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
