"""What the Debian package puts on a host, as far as it can be told without building it (scripts/test-deb does that)."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import click
import pytest

from sample_configuration import PASSWORD_FILE, packaged_configuration
from zithara_worker.commands.config import sample_file
from zithara_worker.commands.root import command
from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sections import KEYS, WorkerSettings
from zithara_worker.settings.sources import load
from zithara_worker.topics import TOPICS
from zithara_worker.version import VERSION

DEBIAN = Path(__file__).parents[2] / "packaging" / "deb" / "debian"


def ini(path: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None, inline_comment_prefixes=(";",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser's manual says
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def test_changelog_begins_with_the_projects_version() -> None:
    assert (DEBIAN / "changelog").read_text(encoding="utf-8").startswith(f"zithara-worker ({VERSION}) ")


def test_packaged_configuration_is_valid_once_the_password_is_there(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("swordfish\n", encoding="utf-8")
    file = tmp_path / "zithara-worker.conf"
    file.write_text(packaged_configuration().replace(PASSWORD_FILE, str(password)), encoding="utf-8")
    configured = load(file, {}, {}, lambda root: {})
    assert configured.settings.database.user == "zithara_worker"
    assert configured.settings.database.password.reveal() == "swordfish"
    assert {place[0] for place in configured.sources} == {"database"}


def test_packaged_configuration_without_the_password_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "zithara-worker.conf"
    file.write_text(packaged_configuration().replace(PASSWORD_FILE, str(tmp_path / "missing")), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load(file, {}, {}, lambda root: {})
    text = str(caught.value)
    assert text.count("\n") == 0
    assert all(part in text for part in (str(file), "[database]", "password_file", str(tmp_path / "missing")))


def test_packaged_configuration_explains_every_key_of_the_sample() -> None:
    text = packaged_configuration()
    for key in KEYS:
        assert re.search(rf"^#?{key.name} =", text, re.MULTILINE), key.place
    explained = [line for line in sample_file().splitlines()[1:] if line.startswith("# ")]
    assert explained and not [line for line in explained if line not in text]


def test_every_topic_has_a_program_in_the_group() -> None:
    supervisor = ini(DEBIAN / "etc/supervisor/conf.d/zithara-worker.conf")
    programs = supervisor["group:zithara-worker"]["programs"].split(",")
    commands = {supervisor[f"program:{program}"]["command"] for program in programs}
    assert commands == {f"/usr/bin/zithara-worker consume {topic}" for topic in TOPICS}
    assert {name for name in supervisor.sections() if name.startswith("program:")} == {
        f"program:{program}" for program in programs
    }


def test_each_program_keeps_an_address_of_its_own() -> None:
    """Also with several processes a topic, and whichever of supervisor and systemd runs it."""
    supervisor = ini(DEBIAN / "etc/supervisor/conf.d/zithara-worker.conf")
    under_supervisor = {
        program["command"].split()[-1]: program["environment"].partition("=")[2].strip('"')
        for name, program in supervisor.items()
        if name.startswith("program:")
    }
    for unit, ports in (("zithara-worker", (9210, 9220, 9230, 9240)), ("zithara-worker-relay", range(9250, 9254))):
        for topic, port in zip(TOPICS, ports, strict=True):
            drop_in = ini(DEBIAN / f"systemd/{unit}@{topic}.service.d/port.conf")["Service"]["Environment"]
            assert drop_in == f"ZITHARA_WORKER_METRICS_LISTEN=127.0.0.1:{port}"
            if unit == "zithara-worker":
                assert under_supervisor[topic] == f"127.0.0.1:{port}".removesuffix("0") + "%(process_num)d"


def test_relay_is_one_program_that_is_off_until_it_is_asked_for() -> None:
    supervisor = ini(DEBIAN / "etc/supervisor/conf.d/zithara-worker-relay.conf")
    (name,) = supervisor.sections()
    assert (name, supervisor[name]["autostart"]) == ("program:zithara-relay", "false")
    assert supervisor[name]["command"] == "/usr/bin/zithara-worker relay --all"
    assert "numprocs" not in supervisor[name]


@pytest.mark.parametrize(
    "path",
    [
        "etc/supervisor/conf.d/zithara-worker.conf",
        "etc/supervisor/conf.d/zithara-worker-relay.conf",
        "examples/supervisor-one-process.conf",
    ],
)
def test_supervised_programs_stop_in_order_and_never_as_root(path: str) -> None:
    supervisor = ini(DEBIAN / path)
    programs = [supervisor[name] for name in supervisor.sections() if name.startswith("program:")]
    assert programs
    for program in programs:
        assert program["user"] == "zithara-worker"
        assert program["stopsignal"] == "TERM"
        assert int(program["stopwaitsecs"]) > WorkerSettings().shutdown_timeout
        assert program["autorestart"] == "true"
        assert int(program["startsecs"]) >= 1
        assert program["stdout_logfile_maxbytes"] and program["stdout_logfile_backups"]
        if "numprocs" in program:
            # supervisor refuses more than one process without a number in its name.
            assert "process_num" in program["process_name"] and "process_num" in program["stdout_logfile"]


@pytest.mark.parametrize(("name", "command"), [("zithara-worker@", "consume"), ("zithara-worker-relay@", "relay")])
def test_unit_is_hardened_and_fits_the_worker(name: str, command: str) -> None:
    unit = ini(DEBIAN / f"systemd/{name}.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert service["RestartPreventExitStatus"] == "78"
    assert service["User"] == "zithara-worker"
    assert int(service["TimeoutStopSec"]) > WorkerSettings().shutdown_timeout
    assert service["LimitCORE"] == "0"
    assert service["MemoryMax"] == "512M"
    assert service["ExecStart"] == f"/usr/bin/zithara-worker {command} %i"
    for key in (
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectHome",
        "ProtectControlGroups",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "MemoryDenyWriteExecute",
    ):
        assert service[key] == "yes", key
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


def test_nothing_is_enabled_or_started_by_installing() -> None:
    postinst = (DEBIAN / "zithara-worker.postinst").read_text(encoding="utf-8")
    assert not re.search(r"systemctl.* (enable|start)\b(?!.*EOF)", postinst.partition("cat <<EOF")[0])
    assert "try-restart" in postinst


def test_every_unit_and_program_is_known_to_installation_upgrade_removal_and_purge() -> None:
    installed, postinst, prerm, postrm = (
        (DEBIAN / f"zithara-worker.{name}").read_text(encoding="utf-8")
        for name in ("install", "postinst", "prerm", "postrm")
    )
    for unit in (DEBIAN / "systemd").glob("*@.service"):
        instances = unit.name.replace("@.service", "@*.service")
        assert f"debian/systemd/{unit.name} usr/lib/systemd/system" in installed
        assert f"'{instances}'" in postinst and f"'{instances}'" in prerm and f"*.wants/{instances}" in postrm
    for file in (DEBIAN / "etc/supervisor/conf.d").iterdir():
        supervisor = ini(file)
        for program in (name.removeprefix("program:") for name in supervisor.sections() if name.startswith("program:")):
            assert f"/var/log/supervisor/{program}" in postrm


@pytest.mark.parametrize("script", ["zithara-worker.postinst", "zithara-worker.prerm", "zithara-worker.postrm"])
def test_maintainer_scripts_stop_at_errors(script: str) -> None:
    text = (DEBIAN / script).read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n") and "\nset -e\n" in text and "#DEBHELPER#" in text


def test_reconcile_runs_by_a_timer_that_is_off_and_as_the_operator() -> None:
    unit = ini(DEBIAN / "systemd/zithara-worker-reconcile.service")
    service = unit["Service"]
    assert "Install" not in unit, "only its timer is enabled"
    assert service["LoadCredential"] == "operator-password:/etc/zithara-worker/operator-password"
    assert "PASSWORD_FILE=%d/operator-password" in service["Environment"]
    assert service["Type"] == "oneshot" and service["User"] == "zithara-worker"
    relay = ini(DEBIAN / "systemd/zithara-worker-relay@.service")["Service"]
    hardening = [key for key in relay if key.startswith(("Protect", "Private", "Restrict", "System", "Capab", "NoNew"))]
    assert len(hardening) > 15 and [key for key in hardening if service.get(key) != relay[key]] == []
    timer = ini(DEBIAN / "systemd/zithara-worker-reconcile.timer")
    assert timer["Install"]["WantedBy"] == "timers.target" and timer["Timer"]["Persistent"] == "true"
    cron = (DEBIAN / "examples/zithara-worker-reconcile.cron").read_text(encoding="utf-8")
    (line,) = [line for line in cron.splitlines() if line[:1].isdigit()]
    assert re.fullmatch(r"(\S+ ){5}zithara-worker .*", line), "five fields, a user, a command"
    assert "%" not in line, "cron ends a command there, and gives it the rest as standard input"
    words = service["ExecStart"].split()[1:]
    assert " ".join(words) in line
    context = click.Context(command)
    reconcile = command.get_command(context, words[0])  # type: ignore[attr-defined]
    known = {name for parameter in reconcile.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known

    installed, prerm, postrm = (
        (DEBIAN / f"zithara-worker.{name}").read_text(encoding="utf-8") for name in ("install", "prerm", "postrm")
    )
    for name in ("zithara-worker-reconcile.service", "zithara-worker-reconcile.timer"):
        assert f"debian/systemd/{name} usr/lib/systemd/system" in installed and name in prerm
    assert "*.wants/zithara-worker-reconcile.timer" in postrm
