"""Checks of what lies between the worker and its rows: durability, proxies, the nodes of a cluster and their clocks.

Sources: MariaDB's and Galera's lists of variables, MySQL's of Group Replication. What each finding cost was measured
(docs/databases.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from zithara_worker.database.session import Database
from zithara_worker.doctor.finding import Finding, failed, ok, warning
from zithara_worker.errors import ShopError, ZitharaWorkerError
from zithara_worker.monitor import fleet
from zithara_worker.settings.sections import DatabaseSettings
from zithara_worker.units import duration

#: Statements that are asked which server answers, outside a transaction.
ASKED = 5
#: Messages whose ids tell which node gave them, and how often the node may change among them: a few failovers.
NEWEST = 1000
CHANGES = 5
#: Seconds that the clocks of two nodes may be apart. Leases are renewed every third of 60 s.
SKEW_SECONDS = 2.0


def durability(database: Database) -> Iterator[Finding]:
    flushed = _variables(database).get("innodb_flush_log_at_trx_commit", "1")
    if flushed != "1":
        yield warning(
            "database.durability",
            f"innodb_flush_log_at_trx_commit is {flushed}: a crash of the server loses the transactions of its last "
            "second, messages and outcomes among them; what was delivered may be delivered again",
            "SET GLOBAL innodb_flush_log_at_trx_commit = 1, and in the server's configuration; on a cluster, where all "
            "nodes can lose power at once, too",
        )
    else:
        yield ok("database.durability", "the server flushes each commit")


def proxy(database: Database) -> Iterator[Finding]:
    """Whether all statements of a session reach one server, within a transaction and outside."""
    answered = {_server(database) for _ in range(ASKED)}
    with database.transaction():
        answered.add(_server(database))
    if len(answered) > 1:
        yield failed(
            "database.proxy",
            f"statements of one session are answered by different servers ({', '.join(sorted(answered))}): a proxy "
            "sends reads to replicas, which lag behind the claims and outcomes that the worker has just written",
            "let the proxy send everything of this user to the server that takes writes (MaxScale: readconnroute with "
            "router_options=master; ProxySQL: no read rule for the user), or name that server in [database] host",
        )
    else:
        yield ok("database.proxy", f"every statement is answered by {answered.pop()}")


def _server(database: Database) -> str:
    row = database.rows("who_answers")[0]
    return f"{row['host']}:{row['port']} (server_id {row['server_id']})"


def nodes(database: Database) -> Iterator[Finding]:
    """Size and state of the cluster that the server belongs to, and what its nodes should be set to."""
    variables = _variables(database)
    if database.is_galera:
        yield from _galera(variables, _status(database))
    elif variables.get("group_replication_group_name"):
        yield from _group(database, variables)
    else:
        yield ok("cluster", "the server belongs to no Galera cluster and to no group")
        return
    yield from _writers(database, int(variables.get("auto_increment_increment", "1")))


def _galera(variables: Mapping[str, str], status: Mapping[str, str]) -> Iterator[Finding]:
    size, state = int(status.get("wsrep_cluster_size", "0")), status.get("wsrep_local_state_comment", "unknown")
    strict = variables.get("pxc_strict_mode")
    told = f"Galera, {size} nodes, this one {state}" + (f", pxc_strict_mode {strict}" if strict else "")
    if status.get("wsrep_cluster_status") != "Primary" or status.get("wsrep_ready") != "ON":
        yield failed(
            "cluster",
            f"{told}, {status.get('wsrep_cluster_status')}: this node is outside the majority and answers error 1047",
            "bring the other nodes back, or name several nodes in [database] host, so that workers use one that serves",
        )
    elif size < 3:
        yield warning(
            "cluster",
            f"{told}: with fewer than three, the loss of one node can stop the others",
            "add a node, or an arbitrator (garbd)",
        )
    elif state != "Synced":
        yield warning(
            "cluster",
            f"{told}: it lags behind the others (wsrep_local_recv_queue {status.get('wsrep_local_recv_queue')})",
            "wait until it is Synced; name another node first in [database] host",
        )
    else:
        yield ok("cluster", told)
    if variables.get("innodb_autoinc_lock_mode", "2") != "2":
        yield warning(
            "cluster.autoinc",
            f"innodb_autoinc_lock_mode is {variables['innodb_autoinc_lock_mode']}: nodes that write at the same time "
            "meet deadlocks at ids",
            "innodb_autoinc_lock_mode = 2 in the configuration of every node",
        )
    elif size > 1 and variables.get("auto_increment_increment") == "1":
        yield warning(
            "cluster.autoinc",
            "auto_increment_increment is 1 in a cluster: two nodes that write give the same ids, and one fails",
            "SET GLOBAL wsrep_auto_increment_control = ON on every node, unless only one node is ever written to",
        )
    else:
        yield ok("cluster.autoinc", f"ids of one node are {variables.get('auto_increment_increment')} apart")


def _group(database: Database, variables: Mapping[str, str]) -> Iterator[Finding]:
    try:
        members = database.rows("group_members")
    except ShopError as error:
        yield warning(
            "cluster",
            f"the members of the replication group cannot be seen: {error}",
            "GRANT SELECT ON performance_schema.replication_group_members to the worker's user",
        )
        return
    online = [row for row in members if row["state"] == "ONLINE"]
    told = f"Group Replication, {len(online)} of {len(members)} members online"
    if not online:
        yield failed(
            "cluster",
            f"{told}: this server is outside its group, and what is written to it is lost to the others",
            "START GROUP_REPLICATION, or see its error log; set super_read_only = ON in its configuration, so that it "
            "takes no writes before it has joined",
        )
    elif len(online) < max(3, len(members)):
        away = ", ".join(f"{row['host']}:{row['port']} {row['state']}" for row in members if row not in online)
        yield warning(
            "cluster",
            f"{told}{f' ({away})' if away else ''}: the loss of another one can stop the group",
            "bring it back or add one",
        )
    elif variables.get("group_replication_single_primary_mode", "ON") != "ON":
        yield warning(
            "cluster",
            f"{told}, in multi-primary mode: publishers fail at COMMIT where two members write (error 3101)",
            "SELECT group_replication_switch_to_single_primary_mode()",
        )
    else:
        yield ok("cluster", told)


def _writers(database: Database, step: int) -> Iterator[Finding]:
    """Whether several nodes give message ids in turn. Each node's ids have a remainder of their own."""
    ids = [int(row["id"]) for row in database.rows("newest_ids", limit=NEWEST)]
    changes = sum(one % step != another % step for one, another in pairwise(ids))
    if changes > CHANGES:
        yield warning(
            "cluster.writers",
            f"among the last {len(ids)} messages the node that gave the id changes {changes} times: the shop writes to "
            "several nodes, so message ids, which deliveries follow, can contradict the order of the commits",
            "let the shop write to one node: a proxy with one writer, or one host in app/etc/env.php; checkouts then "
            "meet no deadlocks of other nodes either",
        )
    else:
        yield ok("cluster.writers", f"the last {len(ids)} message ids were given by one node at a time")


def addresses(
    database: Database,
    settings: DatabaseSettings,
    utc: Callable[[], float],
    open_at: Callable[..., Database] = Database,
) -> Iterator[Finding]:
    """Each address of [database] host by itself: whether it serves, and its clock. Nothing where there is one."""
    if not database.addresses.several:
        return
    ahead: dict[str, float] = {}
    away: list[str] = []
    for address in database.addresses.all:
        port, host = address.port, f"[{address.host}]" if ":" in address.host else address.host
        session = open_at(replace(settings, host=host, port=port))
        try:
            ahead[str(address)] = fleet.now_utc(session) - utc()
        except ZitharaWorkerError as error:
            away.append(f"{address}: {error}")
        finally:
            session.close()
    if away:
        yield warning(
            "cluster.addresses",
            f"{len(away)} of {len(database.addresses.all)} addresses do not answer: {'; '.join(away)}",
            "bring the server back, or correct [database] host: workers have so much less to go to",
        )
    else:
        yield ok("cluster.addresses", f"all {len(ahead)} addresses answer; {database.server} is used")
    if ahead and max(ahead.values()) - min(ahead.values()) > SKEW_SECONDS:
        apart = duration(max(ahead.values()) - min(ahead.values()))
        first, last = max(ahead, key=ahead.__getitem__), min(ahead, key=ahead.__getitem__)
        yield warning(
            "cluster.clocks",
            f"the clock of {first} is {apart} ahead of that of {last}: after a failover leases end and retries are due "
            "by so much too early or too late",
            "synchronise the nodes (timedatectl set-ntp true, or chrony)",
        )
    elif ahead:
        yield ok("cluster.clocks", "the clocks of the nodes agree")


def _variables(database: Database) -> Mapping[str, str]:
    return {str(row["Variable_name"]): str(row["Value"]) for row in database.rows("cluster_variables")}


def _status(database: Database) -> Mapping[str, str]:
    return {str(row["Variable_name"]): str(row["Value"]) for row in database.rows("cluster_status")}
