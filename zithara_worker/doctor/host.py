"""Checks of this host: programs of supervisor and systemd that run the worker, log files, disk space."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zithara_worker.doctor.finding import Finding, failed, ok, unchecked, warning
from zithara_worker.pages import page
from zithara_worker.settings.sections import LoggingSettings
from zithara_worker.topics import TOPICS, full_name

#: Runs a command; its standard output whatever its exit code, None when there is no such command or it hangs.
Run = Callable[[Sequence[str]], "str | None"]

#: Free space below which a log is in danger, and below which it is full, bytes.
_LITTLE = 1_000_000_000
_NONE = 20_000_000
_SUPERVISOR = ("supervisor/supervisord.conf", "supervisor/conf.d/*.conf", "supervisord.conf", "supervisord.d/*")
_SYSTEMD = ("systemd/system/*.service", "systemd/system/*.service.d/*.conf")
_CONSUME = re.compile(r"zithara-worker\b.*?\bconsume\b(?P<arguments>.*)")


def run_command(arguments: Sequence[str]) -> str | None:
    """Gives up after 5 s: neither program has a reason to take longer."""
    if shutil.which(arguments[0]) is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - fixed programs, names of units that stand in /etc
            list(arguments), capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout


def programs(etc: Path, run: Run) -> Iterator[Finding]:
    """Supervisor's and systemd's programs that consume, which topics they serve, and whether they run."""
    found = {**_supervised(etc), **_units(etc)}
    served: set[str] = set()
    stopped: list[str] = []
    unseen: list[str] = []
    for name, arguments in found.items():
        words = arguments.split()
        served |= set(TOPICS) if "--all" in words else {full_name(word) for word in words}
        state = _state(name, run)
        if state is None:
            unseen.append(name)
        elif state not in ("RUNNING", "active"):
            stopped.append(f"{name} ({state})")
    if not found:
        yield warning(
            "programs",
            f"neither supervisor nor systemd has a program under {etc} that runs 'zithara-worker consume'",
            f"the Debian package has both ({page('install.md')}), so that the worker comes back after a restart "
            "(not needed where a container or another host runs it)",
        )
        return
    missing = [topic for topic in TOPICS if topic not in served]
    if missing:
        yield warning(
            "programs",
            f"no program of supervisor or systemd serves {', '.join(missing)}",
            "add the topics to a program's command line, or use --all",
        )
    else:
        yield ok("programs", f"{', '.join(sorted(found))}: every topic is served")
    if stopped:
        yield failed(
            "programs.running",
            f"not running: {', '.join(sorted(stopped))}",
            "supervisorctl start NAME, or systemctl start NAME; its log says why it stopped",
        )
    if unseen:
        yield unchecked(
            "programs.running",
            f"whether {', '.join(sorted(unseen))} run: its manager does not answer this user, or is not running",
            "as root: supervisorctl status, or systemctl status 'zithara-worker@*'; living workers: see 'workers'",
        )


def _supervised(etc: Path) -> dict[str, str]:
    """Supervisor's programs: "supervisor NAME" -> arguments of consume."""
    found = {}
    for file in _files(etc, _SUPERVISOR):
        parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";",))
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # supervisor itself reports it
        for section in parser.sections():
            match = _CONSUME.search(parser.get(section, "command", fallback=""))
            if section.startswith("program:") and match:
                found[f"supervisor {section.removeprefix('program:')}"] = match["arguments"]
    return found


def _units(etc: Path) -> dict[str, str]:
    """systemd's units: "systemd NAME" -> arguments of consume, also of the package's own under /usr/lib."""
    found = {}
    for file in (*_files(etc, _SYSTEMD), *_files(etc.parent / "usr/lib", _SYSTEMD)):
        text = file.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
        match = re.search(r"^ExecStart=.*$", text, re.MULTILINE)
        consume = _CONSUME.search(match[0]) if match else None
        if consume is None:
            continue
        unit = file.parent.name.removesuffix(".d") if file.parent.name.endswith(".d") else file.name
        if unit.endswith("@.service"):
            # A template serves the topics of its instances, which are links in a target's folder.
            for link in sorted(etc.glob(f"systemd/system/*.wants/{unit.removesuffix('.service')}*.service")):
                instance = link.name.partition("@")[2].removesuffix(".service")
                found[f"systemd {link.name}"] = re.sub("%[iI]", instance, consume["arguments"])
        else:
            found[f"systemd {unit}"] = consume["arguments"]
    return found


def _files(root: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(
        file for pattern in patterns for file in root.glob(pattern) if file.is_file() and os.access(file, os.R_OK)
    )


def _state(name: str, run: Run) -> str | None:
    """RUNNING, STOPPED, FATAL...; active, inactive, failed...; None when it is not known."""
    manager, _, program = name.partition(" ")
    if manager == "systemd":
        output = run(["systemctl", "is-active", program])
        state = (output or "").strip()
        return state if state in ("active", "inactive", "failed", "activating", "deactivating") else None
    states = set()
    for line in (run(["supervisorctl", "status"]) or "").splitlines():
        words = line.split()
        # 'name STATE ...', or 'group:name_00 STATE ...' where a program runs several processes
        if len(words) >= 2 and re.fullmatch(rf"(.*:)?{re.escape(program)}(_\d+)?", words[0]) and words[1].isupper():
            states.add(words[1])
    return next((state for state in sorted(states) if state != "RUNNING"), "RUNNING" if states else None)


def log_files(settings: LoggingSettings) -> Iterator[Finding]:
    """Whether each file can be written, who can read it, and whether its disk has room."""
    for key, path in (("file", settings.file), ("audit_file", settings.audit_file)):
        if path is not None:
            yield _log_file(f"log.{key}", path, required=key == "audit_file" and settings.audit_required)


def _log_file(check: str, path: Path, *, required: bool) -> Finding:
    user = f"user {os.geteuid()}"
    folder = path.absolute().parent
    if not folder.is_dir():
        return failed(
            check, f"there is no directory {folder}", f"install -d -m 0750 {folder}, owned by the worker's user"
        )
    if path.is_dir():
        return failed(check, f"{path} is a directory", f"name a file in [logging] {check.removeprefix('log.')}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return failed(
            check,
            f"{path} is a link or no regular file, which the worker does not open",
            f"remove it, or name another file in [logging] {check.removeprefix('log.')}",
        )
    if not os.access(path if path.exists() else folder, os.W_OK):
        return failed(
            check, f"{user} may not write {path}", f"chown it, or its directory {folder}, to the worker's user"
        )
    free = shutil.disk_usage(folder).free
    stop = ", and nothing is taken then (audit_required)" if required else ""
    if free < _NONE:
        return failed(check, f"the disk of {path} is full{stop}", "free space, or rotate the logs (logrotate)")
    if free < _LITTLE:
        return warning(
            check, f"{free // 1_000_000} MB are left on the disk of {path}{stop}", "free space, or rotate the logs"
        )
    if path.exists() and path.stat().st_mode & stat.S_IROTH:
        return warning(check, f"everybody on this host can read {path}", f"chmod o= {path}")
    return ok(check, f"{user} can write {path}, {free // 1_000_000_000} GB left")
