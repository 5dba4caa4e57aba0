"""Twenty troubles of a shop, and what the worker's own tools say of each.

Each is made for real: a real MariaDB, a real HTTP server, real files, the installed command. The tool that one would
run first then has to name the thing and the remedy, with the exit code of the design. Once the remedy is applied, as it
is printed where a program can do that, a tool has to say that all is well. No output has a traceback or a secret.
"""

from __future__ import annotations

import re
import shlex
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.database import statements
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.session import worker_command, write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

FIXTURES = Path(__file__).parents[1] / "fixtures"
#: A secret that does not fit, where one is asked for
WRONG = "not-the-secret"
WELL: Mapping[str, str] = {"doctor": r"^\d+ ok, \d+ warning, 0 failed", "check": "^ZITHARA OK"}


class Host:
    """The host of a shop's worker: its configuration, its workers, and all that was said there."""

    def __init__(self, shop: Shop, api: FakeZithara, directory: Path, processes: ExitStack) -> None:
        self.shop = shop
        self.api = api
        self.directory = directory
        self.said: list[str] = []
        self._processes = processes
        self._workers: list[WorkerProcess] = []
        self.configure()

    def configure(self, **sections: Mapping[str, str]) -> Path:
        """Writes the configuration anew, with these keys besides, for the worker's account and for an operator's."""
        for name, account in (("worker.conf", {}), ("operator.conf", {"user": "root", "password": ""})):
            given = {"worker": {"poll_interval": "0.05"}, "metrics": {"listen": "127.0.0.1:0"}, **sections}
            if account:
                given["database"] = {**sections.get("database", {}), **account}
            write_config(self.directory / name, self.shop, self.api, given)
        return self.directory / "worker.conf"

    def run(self, line: str, *, operator: bool = False) -> tuple[int, str]:
        """Exit code and output of `zithara-worker LINE`, as the worker's account or as the operator's."""
        config = self.directory / ("operator.conf" if operator else "worker.conf")
        command = [worker_command(), "--config", str(config), *shlex.split(line)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        self.said.append(done.stdout + done.stderr)
        return done.returncode, self.said[-1]

    def tells(self, line: str, code: int, *told: str, operator: bool = False) -> str:
        """The command ends with this exit code and says each of these; its output, with its lines joined."""
        ended, output = self.run(line, operator=operator)
        joined = " ".join(output.split())
        assert ended == code and [each for each in told if each not in joined] == [], output
        return joined

    def finding(self, check: str, *told: str) -> str:
        """`doctor` says each of these, and this check alone has failed: one cause, one finding. Its output."""
        output = self.tells("doctor", 1, *told)
        assert re.findall(r"^failed +(\S+)", self.said[-1], re.MULTILINE) == [check]
        return output

    def start(self, *topics: str) -> WorkerProcess:
        worker = WorkerProcess(
            self.directory / "worker.conf", "consume", *(topics or ("--all",)), environment=SHORT_INTERVALS
        )
        self._workers.append(worker)
        return self._processes.enter_context(worker)

    def healthz(self, worker: WorkerProcess) -> str:
        address = worker.wait_for_log(event="listening")["address"]
        self.said.append(httpx.get(f"http://{address}/healthz", trust_env=False).text)
        return self.said[-1]

    def told_by(self, line: str, *told: str) -> None:
        """What workers write every half second is told by this command, before long."""
        eventually(lambda: all(each in " ".join(self.run(line)[1].split()) for each in told), within=15)

    def delivered(self) -> None:
        eventually(lambda: set(self.shop.statuses()) == {4}, within=15)

    def everything_said(self) -> str:
        return "\n".join([*self.said, *(f"{worker.logs} {worker.output}" for worker in self._workers)])


#: Makes the trouble and looks at it up to the first `yield`; then applies the remedy.
Trouble = Callable[[Host], Iterator[None]]
#: Trouble -> the command that has to say, in the end, that all is well
TROUBLES: dict[Trouble, str] = {}


def ends_well(line: str) -> Callable[[Trouble], Trouble]:
    def add(made: Trouble) -> Trouble:
        TROUBLES[made] = line
        return made

    return add


# ---------------------------------------------------------------- the database


@ends_well("doctor")
def the_name_of_the_database_is_wrong(host: Host) -> Iterator[None]:
    host.configure(database={"name": "magneto"})
    told = ("the password is right, but this user has no such database", "magneto", "correct [database] name")
    host.tells("doctor", 1, *told)
    host.tells("status", 78, *told)
    yield
    host.configure()


@ends_well("doctor")
def the_table_prefix_is_wrong(host: Host) -> Iterator[None]:
    host.configure(database={"table_prefix": "m2_"})
    told = ("no Magento tables with the prefix 'm2_', but with ''", "set [database] table_prefix to ''")
    host.finding("tables.magento", *told)
    host.tells("consume --all", 1, *told)
    host.tells("install", 1, *told, operator=True)
    assert host.shop.query("SHOW TABLES LIKE 'm2\\_%'") == [], "tables that no worker would ever read"
    yield
    host.configure()


@ends_well("doctor")
def the_database_does_not_answer(host: Host) -> Iterator[None]:
    host.configure(database={"unix_socket": "/nowhere/mysqld.sock"})
    told = ("there is no socket /nowhere/mysqld.sock", "check that the server runs there, and [database] unix_socket")
    host.finding("database", *told, "so tables, privileges, queues, workers and the shop's settings")
    for command in ("status", "pause order"):
        host.tells(command, 75, *told)
    host.tells("check", 2, "ZITHARA CRITICAL", *told)
    worker = host.start()
    assert told[1] in worker.wait_for_log(event="database_away")["detail"], "a worker waits, and does not end"
    worker.terminate()
    assert worker.wait() == 0
    host.configure(database={"unix_socket": "", "host": "127.0.0.1", "port": "1"})
    host.tells("status", 75, "no connection to 127.0.0.1:1", "[database] host and port")
    yield
    host.configure()


@ends_well("doctor")
def the_password_of_the_database_is_wrong(host: Host) -> Iterator[None]:
    host.configure(database={"password": WRONG})
    told = ("refused the user", host.shop.user, "correct [database] user and password")
    host.tells("doctor", 1, *told)
    host.tells("consume --all", 78, *told)
    yield
    host.configure()


def give_printed_grants(host: Host) -> None:
    """What `install --print` prints for the worker's account, run by an administrator."""
    _, printed = host.run(f"install --print --user \"'{host.shop.user}'@'%'\"")
    grants = re.findall(r"^GRANT [^;]+;", printed, re.MULTILINE)
    assert len(grants) > 10
    for grant in grants:
        host.shop.query(grant)


@ends_well("check")
def a_privilege_is_missing(host: Host) -> Iterator[None]:
    host.shop.query(f"REVOKE INSERT ON {host.shop.name}.queue_lock FROM '{host.shop.user}'@'%'")
    host.shop.publish_order("000000101")
    worker = host.start()
    seen = "because its turns fail: INSERT command denied to user"
    host.told_by("check", "ZITHARA CRITICAL", seen, "see 'zithara-worker doctor'")
    host.tells("status", 0, seen, "turns fail (INSERT command denied")
    assert seen in host.healthz(worker)
    host.finding("privileges", "the database user lacks INSERT on queue_lock", "'zithara-worker install --print'")
    yield
    give_printed_grants(host)
    host.delivered()


@ends_well("doctor")
def the_workers_tables_are_not_there(host: Host) -> Iterator[None]:
    for (table,) in host.shop.query("SHOW TABLES LIKE 'zithara\\_%'"):
        if table != "zithara_webhook_config":
            host.shop.query(f"DROP TABLE {table}")
    told = ("zithara_message_group", "run 'zithara-worker install' as a user who may create tables")
    host.finding("tables.worker", *told)
    host.tells("consume --all", 1, *told)
    host.tells("check", 3, "ZITHARA UNKNOWN", *told)
    host.tells("install", 1, "CREATE command denied", "do it as a database user who may CREATE and ALTER tables")
    yield
    installed = host.tells("install", 0, "table zithara_message_group", operator=True)
    assert host.tells("install", 0, operator=True) == installed, "run again, it changes nothing"
    for said in ("index: built", "index: there"):
        host.tells("install --index", 0, said, operator=True)
    give_printed_grants(host)


@ends_well("check")
def the_workers_tables_are_of_an_older_version(host: Host) -> Iterator[None]:
    for (table,) in host.shop.query("SHOW TABLES LIKE 'zithara\\_%'"):
        if table != "zithara_webhook_config":
            host.shop.query(f"DROP TABLE {table}")
    old = (FIXTURES / "schema-1.sql").read_text(encoding="utf-8") + statements.read("upgrade_2.sql")
    for text in re.sub(r"--[^\n]*", "", old.replace("{prefix}", "")).split(";"):
        if text.strip():
            host.shop.query(text)
    host.shop.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {host.shop.name}.* TO '{host.shop.user}'@'%'")
    host.finding("tables.worker", "the tables are of schema 2", "run 'zithara-worker install' of this version")
    host.tells("check", 2, "ZITHARA CRITICAL", "the worker's tables are of schema 2", "run 'zithara-worker install'")
    worker = host.start()
    worker.wait_for_log(event="schema_outdated")
    host.shop.publish_order("000000101")
    yield
    host.tells("install", 0, "schema 2 upgraded to", operator=True)
    give_printed_grants(host)
    host.delivered()


# ---------------------------------------------------------------- shop and API


@ends_well("check")
def the_module_is_switched_off(host: Host) -> Iterator[None]:
    host.shop.set_config("zithara_webhook/general/enabled", "0")
    host.shop.publish_order("000000101")
    worker = host.start()
    told = ("the shop has switched Zithara off", "'zithara-worker doctor' says how to switch it on")
    host.told_by("check", "ZITHARA WARNING", *told)
    host.tells("status", 0, *told, "switched off by the shop")
    assert told[0] in host.healthz(worker)
    printed = host.finding("shop.enabled", "bin/magento cache:flush")
    yield
    update = re.search(r"-> (UPDATE core_config_data [^;]+);", printed)
    assert update
    host.shop.query(update[1])
    host.delivered()


@ends_well("check")
def the_credentials_of_the_api_are_refused(host: Host) -> Iterator[None]:
    host.shop.configure_webhook(client_id=host.api.client_id, client_secret=WRONG, webhook_url=host.api.webhook_url)
    for number in range(5):
        host.shop.publish_order(f"N{number}")
    worker = host.start()
    # The same words wherever one looks.
    told = ("API DOWN: credentials refused (HTTP 401: ", "correct client id and secret in the shop's Zithara")
    assert all(each in worker.wait_for_log(event="breaker_opened")["message"] for each in told)
    host.told_by("check", "ZITHARA CRITICAL", *told)
    host.tells("status", 0, *told)
    assert told[0] in host.healthz(worker)
    host.finding("api.token", *told)
    eventually(lambda: host.shop.statuses() == [2] * 5)
    yield
    credentials = {"client_id": host.api.client_id, "client_secret": host.api.client_secret}
    host.shop.configure_webhook(**credentials, webhook_url=host.api.webhook_url)
    host.delivered()
    assert {row.number_of_trials for row in host.shop.rows()} == {0}


@contextmanager
def api_down(host: Host, *seen: str) -> Iterator[WorkerProcess]:
    """`check`, `status` and /healthz tell what was seen. The message waits for the end of the block, then arrives."""
    host.shop.publish_order("000000101")
    worker = host.start()
    worker.wait_for_log(event="breaker_opened")
    told = (*seen, "messages wait and lose no attempt", "'zithara-worker doctor' checks address, certificate and token")
    host.told_by("check", "ZITHARA CRITICAL - API DOWN", *told)
    host.tells("status", 0, "API DOWN", *told)
    assert "API DOWN" in host.healthz(worker)
    yield worker
    host.delivered()
    assert [row.number_of_trials for row in host.shop.rows()] == [0]


@ends_well("check")
def the_address_of_the_api_is_wrong(host: Host) -> Iterator[None]:
    host.configure(zithara={"base_url": f"{host.api.origin}/v2"})
    with api_down(host, "HTTP 404") as worker:
        host.finding("api.token", f"no access token from {host.api.origin}: HTTP 404", "check [zithara] base_url")
        yield
        host.configure()
        worker.send_signal(signal.SIGHUP)


@ends_well("check")
def the_certificate_of_the_api_is_not_trusted(host: Host) -> Iterator[None]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(host.directory / "authority.pem"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with FakeZithara(tls=tls) as secured:
        host.configure(zithara={"base_url": secured.base_url})
        with api_down(host, "CERTIFICATE_VERIFY_FAILED") as worker:
            host.finding("api.tls", f"certificate of {secured.origin} is not trusted", "set [zithara] ca_file")
            yield
            ca_file = str(host.directory / "authority.pem")
            host.configure(zithara={"base_url": secured.base_url, "ca_file": ca_file})
            worker.send_signal(signal.SIGHUP)


@ends_well("check")
def the_api_is_down(host: Host) -> Iterator[None]:
    host.api.stop()
    with api_down(host, "Connection refused"):
        host.finding("api.token", "no access token from", "Connection refused", "the firewall and Zithara's own status")
        yield
        host.api.start()


# ---------------------------------------------------------------- workers and messages


@ends_well("check")
def a_topic_has_no_worker(host: Host) -> Iterator[None]:
    host.start("order", "customer", "webhook").wait_for_log(event="started")
    told = ("no living worker serves zithara.cart.events", "start one ('zithara-worker consume zithara.cart.events')")
    host.told_by("check", "ZITHARA CRITICAL", *told)
    host.tells("status", 0, *told)
    host.tells("doctor", 0, "no worker is alive for zithara.cart.events ->")
    yield
    host.start("zithara.cart.events").wait_for_log(event="started")


@ends_well("check")
def somebody_has_paused_a_topic(host: Host) -> Iterator[None]:
    host.start().wait_for_log(event="started")
    host.run("pause order --reason 'import until six'")
    told = ("topic zithara.order.events is paused", "import until six", "'zithara-worker resume zithara.order.events'")
    host.told_by("check", "ZITHARA WARNING", *told)
    host.tells("status", 0, *told)
    host.tells("doctor", 0, "paused.order", *told[1:])
    yield
    host.tells("resume zithara.order.events", 0, "zithara.order.events: resumed")


@ends_well("check")
def a_message_has_failed(host: Host) -> Iterator[None]:
    host.shop.publish(TOPIC_ORDER, "not json")
    host.start()
    host.told_by(
        "check", "ZITHARA WARNING", "1 message of zithara.order.events failed: see 'zithara-worker failed summary'"
    )
    host.tells("failed summary", 0, "order not_json 1", "not_json: ")
    host.tells("failed show 1", 0, "reason not_json", "fails again")
    host.tells("failed retry --all", 2, "give --yes")
    yield
    host.tells("failed discard 1 --note 'typed by hand'", 0, "1 discarded")


@ends_well("doctor")
def a_php_consumer_has_died_with_a_message(host: Host) -> Iterator[None]:
    host.shop.publish_order("000000101")
    consumer = host.shop.php_consumer(TOPIC_ORDER)
    selected = consumer.select()
    assert selected and consumer.take(selected) and consumer.lock(selected)
    host.shop.make_older(minutes=20)
    host.start().wait_for_log(event="started")
    told = "messages of zithara.order.events are in progress that no worker holds, the oldest for 20m"
    host.told_by("check", "ZITHARA WARNING", told, "see 'zithara-worker doctor'")
    host.tells("doctor", 0, "no worker holds 1 messages", "then zithara-worker failed release 1")
    yield
    host.tells("failed release 1", 0, "1 put back on the queue")
    host.delivered()


@ends_well("doctor")
def the_workers_account_publishes(host: Host) -> Iterator[None]:
    (host.directory / "order.json").write_text("{}", encoding="utf-8")
    publish = f"publish order {host.directory / 'order.json'}"
    told = "do it as the operator's account, since the worker's own has no right to that"
    host.tells(publish, 1, "INSERT command denied", told, "'zithara-worker install --print --operator ACCOUNT'")
    host.tells("reconcile orders", 1, "the shop's orders cannot be read", told)
    yield
    host.tells(publish, 0, operator=True)
    printed = host.tells(f"install --print --operator \"'{host.shop.user}'@'%'\"", 0, "GRANT")
    assert "INSERT" in printed


# ---------------------------------------------------------------- files of this host


@ends_well("check")
def the_required_audit_file_cannot_be_written(host: Host) -> Iterator[None]:
    audit_file = host.directory / "audit" / "audit.jsonl"
    host.configure(logging={"audit_file": str(audit_file), "audit_required": "true"})
    host.shop.publish_order("000000101")
    worker = host.start()
    told = ("because the audit file cannot be written (No such file or directory)", "correct its permissions")
    host.told_by("check", "ZITHARA CRITICAL", *told)
    host.tells("status", 0, *told, "audit file unwritable")
    assert told[0] in host.healthz(worker)
    host.tells("pause order", 1, f"the audit file {audit_file} cannot be written", "nothing was done")
    printed = host.finding("log.audit_file", f"there is no directory {audit_file.parent}")
    yield
    make_directory(printed)
    host.delivered()
    assert '"delivered"' in audit_file.read_text(encoding="utf-8")


@ends_well("doctor")
def the_log_file_cannot_be_written(host: Host) -> Iterator[None]:
    file = host.directory / "log" / "worker.log"
    host.configure(logging={"file": str(file)})
    host.tells("consume --all", 78, f"[logging] file: cannot open {file} for writing", "name a file in a directory of")
    printed = host.finding("log.file", f"there is no directory {file.parent}")
    yield
    make_directory(printed)
    host.tells("consume --all --stop-when-empty", 0)


def make_directory(printed: str) -> None:
    """Runs the command that `doctor` prints for a directory that is not there."""
    command = re.search(r"-> (install -d -m 0750 \S+), owned by the worker's user", printed)
    assert command
    subprocess.run(command[1].split(), check=True)


@ends_well("doctor")
def the_configuration_has_a_slip(host: Host) -> Iterator[None]:
    config = host.configure()
    text = config.read_text(encoding="utf-8")
    config.write_text(f"{text}[retry]\nlimt = 3\n[databse]\nhost = x\n", encoding="utf-8")
    told = (str(config), "[retry] limt", "did you mean 'limit'", "[databse]")
    host.tells("doctor", 1, *told)
    host.tells("consume --all", 78, *told)
    host.tells("check", 3, "ZITHARA UNKNOWN", *told)
    yield
    config.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- all of them


def test_there_are_twenty() -> None:
    assert len(TROUBLES) == 20


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_the_tools_name_it_and_its_remedy(trouble: Trouble, shop: Shop, api: FakeZithara, tmp_path: Path) -> None:
    with ExitStack() as processes:
        host = Host(shop, api, tmp_path, processes)
        with contextmanager(trouble)(host):
            pass
        line = TROUBLES[trouble]
        well = WELL.get(line, "")
        eventually(lambda: (ended := host.run(line))[0] == 0 and re.search(well, ended[1], re.MULTILINE), within=15)
        said = host.everything_said()
    assert "Traceback" not in said
    tokens = [token for (token,) in shop.query("SELECT access_token FROM zithara_webhook_config") if token]
    secrets = [WRONG, shop.password, api.client_secret, *tokens]
    assert [secret for secret in secrets if secret in said] == []
