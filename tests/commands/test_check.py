"""`check`, as monitoring systems call it: the output format of the plugin guidelines, and each exit code."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fleet import register

from zithara_worker.database.session import Database
from zithara_worker.sandbox.session import worker_command
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

#: https://www.monitoring-plugins.org/doc/guidelines.html: 'label'=value[UOM];[warn];[crit];[min];[max]
PERFORMANCE = re.compile(r"[a-z_]+=-?[0-9.]+(s|%|[KMGT]?B|c)?(;[-0-9.:~@]*){0,4}")
Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(worker_config: Callable[..., Path]) -> Check:
    config = worker_config()

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        """The exit code, and the line."""
        command = [worker_command(), "--config", str(config), "check", *arguments]
        told = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={"PATH": "/usr/bin:/bin", **environment},
        )
        assert told.stderr == "" and told.stdout.count("\n") == 1
        line = told.stdout.rstrip("\n")
        text, bar, performance = line.partition(" | ")
        assert re.match(r"ZITHARA (OK|WARNING|CRITICAL|UNKNOWN) - \S", text) and "|" not in text + performance
        assert all(PERFORMANCE.fullmatch(each) for each in performance.split(" ")) if bar else not performance
        return told.returncode, line

    return run


def test_a_shop_that_is_served_is_ok(shop: Shop, database: Database, check: Check) -> None:
    register(database)
    code, line = check()
    assert code == 0 and line.startswith("ZITHARA OK - workers alive: 1, messages waiting: 0 | order_pending=0;;;0 ")
    assert " order_oldest=0s;900;3600;0 order_failed=0;1;100;0 order_workers=1;;1:;0 " in line


def test_the_thresholds_decide_and_the_worst_is_told_first(shop: Shop, database: Database, check: Check) -> None:
    register(database)
    shop.publish_order("1")
    failed = shop.publish_order("2")
    shop.query("UPDATE {prefix}queue_message_status SET status = 6 WHERE id = %s", (failed.relation_id,))
    shop.make_older(minutes=20)
    code, line = check("order")
    assert code == 1 and line.startswith(f"ZITHARA WARNING - {TOPIC_ORDER} is late, its oldest new message has waited")
    assert f"; 1 message of {TOPIC_ORDER} failed: see 'zithara-worker failed summary'" in line
    assert "customer" not in line
    code, line = check("order", "--age-critical", "10m", "--failed-warning", "5")
    assert code == 2 and "is late" in line and "failed:" not in line
    assert check("order", "--age-warning", "1h", "--failed-warning", "5", "--failed-critical", "9")[0] == 0
    assert check("order", "--age-warning", "1h", "--failed-warning", "9", "--pending-warning", "1")[0] == 1


def test_a_topic_that_nobody_serves_and_an_api_that_is_down_are_critical(
    shop: Shop, database: Database, check: Check
) -> None:
    code, line = check("cart")
    assert code == 2 and "CRITICAL - no worker is running: start one" in line
    register(database, topics=[TOPIC_ORDER])
    code, line = check("cart", "order")
    assert code == 2 and "CRITICAL - no living worker serves zithara.cart.events: start one" in line
    assert check("order")[0] == 0
    down = {"breaker": "open", "why": "credentials refused (HTTP 401 | x)", "next_probe_seconds": 5}
    register(database, state={"api": down})
    code, line = check()
    assert code == 2
    assert line.startswith(
        "ZITHARA CRITICAL - API DOWN: credentials refused (HTTP 401 / x): correct client id and secret"
    )


def test_carts_that_zithara_lacks_are_no_matter_of_a_check_of_orders(
    shop: Shop, database: Database, check: Check
) -> None:
    register(database)
    result = json.dumps({"finished_utc": time.time() - 60, "counts": {"complete": 7, "missing": 2}})
    shop.query(
        "INSERT INTO {prefix}zithara_reconciliation (kind, started_at, finished_at, result) "
        "VALUES ('carts', NOW(3), NOW(3), %s)",
        (result,),
    )
    assert check("order")[0] == 0
    code, line = check("cart")
    assert code == 1 and "2 of 9 carts are not with Zithara, as reconcile found 1m0" in line


def test_a_database_that_does_not_answer_is_critical_and_what_cannot_be_known_is_unknown(
    shop: Shop, check: Check
) -> None:
    away = {"ZITHARA_WORKER_DATABASE_UNIX_SOCKET": "/nowhere/mysqld.sock"}
    code, line = check(**away)
    assert code == 2 and "database not available: there is no socket /nowhere/mysqld.sock: check" in line
    code, line = check(ZITHARA_WORKER_DATABASE_PASSWORD="wrong")
    assert code == 2 and re.match(r"ZITHARA CRITICAL - the database at \S+ refused the user .*: correct ", line)
    assert check(ZITHARA_WORKER_WORKER_LEASE="soon")[0] == 3
    assert check("--age-warning", "soon")[0] == 3
    assert check("orders")[0] == 3
    assert check("--no-such-option")[0] == 3
    shop.query("DROP TABLE {prefix}zithara_worker")
    assert check()[0] == 3


def test_after_an_upgrade_check_and_status_say_that_the_tables_are_to_be_upgraded(
    shop: Shop, check: Check, worker_config: Callable[..., Path]
) -> None:
    shop.query("ALTER TABLE {prefix}zithara_message_group COMMENT='zithara-worker schema 3'")
    shop.query("ALTER TABLE {prefix}zithara_worker DROP COLUMN role")
    code, line = check()
    assert code == 2 and "tables are of schema 3, this version needs schema 4: run 'zithara-worker install'" in line
    told = subprocess.run(
        [worker_command(), "--config", str(worker_config()), "status"], capture_output=True, text=True, timeout=30
    )
    assert told.returncode == 1 and "tables are of schema 3, this version needs schema 4" in told.stderr
