"""Sessions, transactions, and what becomes of the server's errors."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial

import pymysql.err
import pytest
from support.waiting import eventually, together
from support.workers import locked_by_somebody, settings_of

from zithara_worker.database import session as database_module
from zithara_worker.database.server_errors import translated
from zithara_worker.database.session import (
    ANSWER_TIMEOUT,
    STATEMENT_TIMEOUT,
    Database,
    knows_skip_locked,
)
from zithara_worker.errors import ConfigurationError, Contention, DatabaseUnavailable, ShopError, ZitharaWorkerError
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.values import Secret


@pytest.fixture
def open_database(shop: Shop) -> Iterator[Callable[..., Database]]:
    """Sessions of the least-privilege user; keywords change the settings."""
    with ExitStack() as opened:

        def make(on: Shop = shop, **changes: object) -> Database:
            return opened.enter_context(closing(Database(settings_of(on, **changes), sleep=lambda _: None)))

        yield make


@pytest.fixture
def database(open_database: Callable[..., Database]) -> Database:
    return open_database()


def variable(database: Database, name: str) -> object:
    with database._open().cursor() as cursor:
        cursor.execute(f"SELECT @@SESSION.{name}")
        return cursor.fetchone()[0]


def test_a_session_has_what_the_protocol_rests_on(database: Database) -> None:
    isolation = {str(row["Value"]) for row in rows(database, "SHOW VARIABLES LIKE '%isolation'") if "-" in row["Value"]}
    assert isolation == {"READ-COMMITTED"}
    assert variable(database, "time_zone") == "+00:00"
    assert variable(database, "innodb_lock_wait_timeout") == 3
    assert variable(database, "autocommit") == 1
    assert "STRICT_TRANS_TABLES" in str(variable(database, "sql_mode"))


def rows(database: Database, text: str) -> list[dict[str, str]]:
    with database._open().cursor(pymysql.cursors.DictCursor) as cursor:
        cursor.execute(text)
        return list(cursor.fetchall())


def test_a_statement_counts_the_rows_it_found_even_if_none_changed(shop: Shop, database: Database) -> None:
    shop.publish_order("A")
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    fence = {"ids": [1], "number_of_trials": 0, "status": 3, "updated_at": shop.rows()[0].updated_at}
    assert [database.execute("settle_release", **fence) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(
    "forbidden",
    [
        "SELECT refresh_token FROM zithara_webhook_config",
        "SELECT * FROM zithara_webhook_config",
        "UPDATE zithara_webhook_config SET client_secret = ''",
        "SELECT config_id, scope_id FROM core_config_data",
        "SELECT id FROM queue_lock",
    ],
)
def test_the_workers_account_can_do_no_more_than_its_statements_need(database: Database, forbidden: str) -> None:
    with pytest.raises(pymysql.err.OperationalError) as refused, database._open().cursor() as cursor:
        cursor.execute(forbidden)
    assert refused.value.args[0] in (1142, 1143)


def test_a_given_clock_is_the_servers_time(shop: Shop) -> None:
    with closing(Database(settings_of(shop), clock=lambda: 1_700_000_000.25)) as database:
        assert float(database.rows("clock")[0]["now"]) == pytest.approx(1_700_000_000.25)


def test_a_transaction_that_raises_leaves_nothing(shop: Shop, database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction():
        database.execute("pause", topic="t", paused_by="me", reason="test")
        raise RuntimeError
    assert database.rows("paused") == []
    with database.transaction():
        database.execute("pause", topic="t", paused_by="me", reason="test")
    assert [row["topic"] for row in database.rows("paused")] == ["t"]


def kill_session(shop: Shop) -> None:
    [(session,)] = shop.query("SELECT id FROM information_schema.processlist WHERE user = %s", (shop.user,))
    shop.query("KILL %s", (session,))


def test_a_lost_connection_is_said_once_and_opened_again(shop: Shop, database: Database) -> None:
    database.rows("paused")
    generation = database.generation
    kill_session(shop)
    with pytest.raises(DatabaseUnavailable):
        database.rows("paused")
    assert database.rows("paused") == []
    assert database.generation == generation + 1
    assert variable(database, "innodb_lock_wait_timeout") == 3, "the new session is set up like the first"


def test_a_connection_lost_within_a_transaction_never_goes_on_half_way(shop: Shop, database: Database) -> None:
    with pytest.raises(DatabaseUnavailable), database.transaction():
        database.execute("pause", topic="first", paused_by="me", reason="test")
        kill_session(shop)
        database.execute("pause", topic="second", paused_by="me", reason="test")
    assert database.rows("paused") == []


def test_a_connection_lost_at_the_commit_is_reported(shop: Shop, database: Database) -> None:
    with pytest.raises(DatabaseUnavailable), database.transaction():
        database.execute("pause", topic="first", paused_by="me", reason="test")
        kill_session(shop)
    assert database.rows("paused") == []


def test_a_deadlock_is_run_again_until_it_goes_through(shop: Shop, open_database: Callable[..., Database]) -> None:
    """Two transactions take the same two rows, each in another order."""
    for name in "AB":
        shop.publish_order(name)
    both_hold_one = threading.Barrier(2, timeout=10)
    runs: list[int] = []

    def run(database: Database, first: int, second: int) -> None:
        met = False

        def transaction() -> None:
            nonlocal met
            runs.append(first)
            with database.transaction():
                database.rows("settle_lock", ids=[first])
                if not met:
                    met = True
                    both_hold_one.wait()
                database.rows("settle_lock", ids=[second])

        database.again_on_contention(transaction)

    together(partial(run, open_database(), *order) for order in ((1, 2), (2, 1)))
    assert len(runs) == 3, "one of the two was the victim, once"


def test_a_lock_that_is_never_freed_is_given_up_in_the_end(shop: Shop, database: Database) -> None:
    shop.publish_order("A")
    database.run_script(["SET SESSION innodb_lock_wait_timeout = 1"])
    tries: list[None] = []

    def transaction() -> None:
        tries.append(None)
        with database.transaction():
            database.rows("settle_lock", ids=[1])

    with locked_by_somebody(shop, 1), pytest.raises(Contention):
        database.again_on_contention(transaction, tries=2)
    assert len(tries) == 2
    assert database.generation == 1, "contention costs no connection"


def refuse(shop: Shop, code: int, *, times: int, state: str = "HY000") -> None:
    """Makes the server answer an INSERT into zithara_topic_control with this error, the first times of a session."""
    shop.query(
        "CREATE TRIGGER {prefix}refusing BEFORE INSERT ON {prefix}zithara_topic_control FOR EACH ROW BEGIN "
        "SET @tried = COALESCE(@tried, 0) + 1; "
        f"IF @tried <= {times} THEN SIGNAL SQLSTATE '{state}' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'as told'; "
        "END IF; END"
    )


def pause(database: Database) -> int:
    return database.execute("pause", topic="t", paused_by="me", reason="test")


@pytest.mark.parametrize("code", [1020, 1205, 1213, 1412, 3101])
def test_a_single_statement_that_met_contention_is_run_again_in_the_same_session(
    shop: Shop, database: Database, code: int
) -> None:
    refuse(shop, code, times=3)
    assert pause(database) == 1
    assert [row["topic"] for row in database.rows("paused")] == ["t"]
    assert database.generation == 1, "contention costs no connection"


def test_contention_within_a_transaction_ends_it_and_is_run_again_as_a_whole(shop: Shop, database: Database) -> None:
    refuse(shop, 3101, times=1)
    with pytest.raises(Contention), database.transaction():
        database.execute("resume", topic="another")
        pause(database)
    assert database.rows("paused") == []
    shop.query("DROP TRIGGER {prefix}refusing")
    refuse(shop, 1213, times=3)

    def transaction() -> None:
        with database.transaction():
            pause(database)

    database.again_on_contention(transaction)
    assert [row["topic"] for row in database.rows("paused")] == ["t"]
    pause(database)
    assert database.generation == 1


def test_contention_that_does_not_end_is_said_as_such(shop: Shop, database: Database) -> None:
    refuse(shop, 1213, times=1000)
    with pytest.raises(Contention, match="as told"):
        pause(database)
    assert database.generation == 1


@pytest.mark.parametrize("code", [1047, 1290, 1792, 1836, 3098, 3100])
def test_a_cluster_that_takes_no_writes_now_is_waited_for_in_another_session(
    shop: Shop, database: Database, code: int
) -> None:
    refuse(shop, code, times=1)
    with pytest.raises(DatabaseUnavailable, match=rf"takes no writes now.*\(error {code}\b") as raised:
        pause(database)
    assert not isinstance(raised.value, Contention)
    assert database.rows("paused") == []
    assert database.generation == 2, "the next one may reach the new primary"


@pytest.mark.parametrize(
    ("code", "server_says", "meaning"),
    [
        (3098, "The table does not comply with the requirements by an external plugin.", "lost its majority"),
        (3100, "Error on observer while running replication hook 'before_commit'.", "lost its majority"),
        (3101, "Plugin instructed the server to rollback the current transaction.", "another server .* same rows"),
    ],
)
def test_what_a_cluster_says_at_a_failover_is_put_into_words_that_do_not_mislead(
    code: int, server_says: str, meaning: str
) -> None:
    said = str(translated(pymysql.err.OperationalError(code, server_says)))
    assert server_says not in said
    assert re.search(rf"{meaning}.*\(error {code}\)", said)


@pytest.mark.parametrize(
    ("statement", "table", "remedy"),
    [
        ("paused", "zithara_topic_control", "run 'zithara-worker install'"),
        ("webhook_configs", "zithara_webhook_config", "correct .database. name and table_prefix.*setup:upgrade"),
    ],
)
def test_a_missing_table_is_told_with_the_remedy_of_its_owner(
    shop: Shop, database: Database, statement: str, table: str, remedy: str
) -> None:
    shop.query(f"DROP TABLE {{prefix}}{table}")
    with pytest.raises(ShopError, match=f"{table}' doesn't exist: {remedy}"):
        database.rows(statement)


@pytest.mark.parametrize("code", [1105, 1180, 1317, 1969, 3024, 1040, 3])
def test_what_the_server_cannot_do_now_is_waited_for(shop: Shop, database: Database, code: int) -> None:
    refuse(shop, code, times=1)
    with pytest.raises(DatabaseUnavailable, match="as told"):
        pause(database)


@pytest.mark.parametrize(("code", "state"), [(1064, "42000"), (1235, "42000"), (1062, "23000")])
def test_a_statement_that_the_server_will_never_take_is_said_with_its_code(
    shop: Shop, database: Database, code: int, state: str
) -> None:
    refuse(shop, code, times=1, state=state)
    with pytest.raises(ShopError, match=rf"refuses a statement.*{code}: as told.*doctor"):
        database.insert("pause", topic="t", paused_by="me", reason="test")
    assert database.generation == 1


def test_every_error_of_the_driver_becomes_one_of_ours() -> None:
    kinds = [kind for kind in vars(pymysql.err).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 10
    for kind in kinds:
        for arguments in ((), ("text",), *((code, "text") for code in (0, 3, *range(1000, 5000)))):
            assert isinstance(translated(kind(*arguments)), ZitharaWorkerError)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x01\x00\x00\x00\x0a", b"\x00\x00\x00\x00", b""])
def test_a_server_of_another_kind_is_no_defect_of_this_program(
    open_database: Callable[..., Database], greeting: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        host, port = listener.getsockname()
        with pytest.raises(DatabaseUnavailable):
            open_database(host=host, port=port, unix_socket="").rows("paused")
        thread.join()


def test_the_server_gives_a_statement_up_before_we_stop_listening(
    shop: Shop, open_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the connection would not do: the server would go on, beside the statement of the next session."""
    monkeypatch.setattr(database_module, "STATEMENT_TIMEOUT", 0.2)
    database = open_database()
    database.rows("paused")
    with pytest.raises(DatabaseUnavailable, match="execution"):
        table = "information_schema.collations"
        database.run_script([f"SELECT COUNT(*) FROM {table} a, {table} b, {table} c, {table} d"])
    running = "SELECT info FROM information_schema.processlist WHERE user = %s AND info IS NOT NULL"
    eventually(lambda: shop.query(running, (shop.user,)) == [], within=1)
    assert STATEMENT_TIMEOUT < ANSWER_TIMEOUT
    assert variable(open_database(), "lock_wait_timeout") == 3, "nor does it wait for a table that somebody alters"


@pytest.mark.parametrize(
    ("changes", "expected", "remedy"),
    [
        (
            {"password": Secret("wrong")},
            ConfigurationError,
            r"at \S+\.sock refused the user \(.*\): correct \[database\] user and password",
        ),
        (
            {"name": "no_such_database"},
            ConfigurationError,
            r"password is right, but .* no such database at \S+ \(.*\): correct \[database\] name, or run",
        ),
        ({"table_prefix": "other_"}, ShopError, r"other_queue_message_status .* table_prefix"),
        ({"unix_socket": "/nonexistent/mysqld.sock"}, DatabaseUnavailable, "no socket /nonexistent/mysqld.sock"),
        ({"unix_socket": "", "host": "127.0.0.1", "port": 1}, DatabaseUnavailable, r"no connection to 127.0.0.1:1 \("),
    ],
    ids=["password", "database", "prefix", "socket", "port"],
)
def test_what_is_wrong_with_the_settings_is_said_with_its_remedy(
    open_database: Callable[..., Database], changes: dict[str, object], expected: type[Exception], remedy: str
) -> None:
    with pytest.raises(expected, match=remedy) as raised:
        open_database(**changes).rows("slice", queue_id=1, after=0, up_to=1, limit=1)
    assert "wrong" not in str(raised.value), "no password in an error"


def test_a_missing_table_and_a_missing_privilege_name_their_remedy(
    make_shop: Callable[..., Shop], open_database: Callable[..., Database]
) -> None:
    bare = make_shop(worker_tables=False)
    bare.query(f"GRANT SELECT ON {bare.name}.queue_message_status TO '{bare.user}'@'%'")
    database = open_database(on=bare)
    with pytest.raises(ShopError, match="grant"):
        database.rows("paused")
    with pytest.raises(ShopError, match="grant"):
        database.execute("settle_superseded", ids=[1])
    bare.query(f"GRANT ALL ON {bare.name}.* TO '{bare.user}'@'%'")
    with pytest.raises(ShopError, match="zithara-worker install"):
        database.rows("paused")


@pytest.mark.parametrize("prefix", ["m2'", "a b", "x;", "`", "a" * 33, "prefix-"])
def test_a_prefix_that_could_leave_its_place_in_a_statement_is_refused(shop: Shop, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        Database(settings_of(shop, table_prefix=prefix))


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.4.34-MariaDB-1:10.4.34+maria~ubu2004-log", False),
        ("10.5.23-MariaDB", False),
        ("10.6.0-MariaDB", True),
        ("10.11.18-MariaDB-0+deb12u1", True),
        ("11.8.9-MariaDB", True),
        ("5.7.44-log", False),
        ("8.0.36", True),
        ("9.7.4", True),
    ],
)
def test_skip_locked_is_used_where_the_server_knows_it(version: str, expected: bool) -> None:
    assert knows_skip_locked(version) is expected


def test_many_rows_go_in_with_one_statement_whatever_they_hold(shop: Shop, database: Database) -> None:
    database.rows("paused")
    before = database.statements_sent
    codes = [("plain",), ("it's",), ('"%s" \\',), ("{prefix}",)]
    assert database.insert_rows("php_locks", codes) == 4
    assert database.insert_rows("php_locks", codes) == 0, "IGNORE"
    assert database.statements_sent - before == 2
    assert {(code,) for (code,) in shop.query("SELECT message_code FROM {prefix}queue_lock")} == set(codes)


def test_what_all_rows_share_is_put_in_once_whatever_it_holds(shop: Shop, database: Database) -> None:
    rows = [("order:%s", 1, 11, None), ("order:it's", 2, 12, "3:13")]
    shared = "worker 100%s (%(x)s) '"
    assert database.insert_rows("claim_groups", rows, queue_id=7, worker_id=shared, claim=1, lease_us=1_000_000) == 2
    columns = "queue_id, group_key, id, message_id, supersedes, worker_id"
    found = shop.query(f"SELECT {columns} FROM {{prefix}}zithara_message_group ORDER BY id")
    assert list(found) == [(7, *row, shared) for row in rows]


def test_every_named_statement_can_be_filled_in(database: Database) -> None:
    database._open()
    database._places.setdefault("pending", "`x`")
    for name in database._texts:
        text = database.text(name)
        assert not re.search(r"\{\w", text), name
        assert "--" not in text.replace("'--'", ""), name


def test_closing_twice_or_after_the_server_went_is_no_error(shop: Shop, database: Database) -> None:
    database.rows("paused")
    kill_session(shop)
    database.close()
    database.close()
