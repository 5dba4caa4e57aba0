"""The files for Prometheus and Grafana are right by promtool's word, and name only metrics that exist."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zithara_worker.monitor.conditions import THRESHOLDS
from zithara_worker.monitor.reconciliations import WRONG

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "packaging" / "monitoring"
RULES = MONITORING / "zithara-worker.rules.yml"
RULE_TESTS = MONITORING / "zithara-worker.rules.test.yml"
DASHBOARD = MONITORING / "grafana-dashboard.json"


def promtool(*arguments: str) -> str:
    found = shutil.which("promtool")
    assert found, "no promtool on this machine: apt-get install prometheus (scripts/test does it)"
    result = subprocess.run(
        [found, *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def existing_metrics() -> set[str]:
    """Names as a query writes them; tests/monitor/test_metrics.py holds the document against the exposition."""
    names = set()
    for name, kind in re.findall(r"^\| `(zithara_worker_\w+)` \| (\w+) ", (ROOT / "docs/metrics.md").read_text(), re.M):
        names |= {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return names


def test_rules_are_well_formed() -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES.name)


def test_the_alert_of_an_old_queue_rings_where_check_warns() -> None:
    (seconds,) = re.findall(r'queue_oldest_age_seconds\{status="new"\}\) > (\d+)', RULES.read_text())
    assert float(seconds) == THRESHOLDS.age_seconds[0]


def test_the_alert_of_an_incomplete_crm_counts_what_check_calls_wrong() -> None:
    (classes,) = re.findall(r'reconcile_entities\{class=~"([\w|]+)"\}', RULES.read_text())
    assert tuple(classes.split("|")) == WRONG


def test_unit_tests_of_the_rules_pass() -> None:
    assert "SUCCESS" in promtool("test", "rules", RULE_TESTS.name)


def test_every_alert_has_a_moment_to_fire_and_one_to_be_silent() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = re.findall(r"alertname: (\w+)\n\s+exp_alerts:(.*)", RULE_TESTS.read_text())
    assert alerts and {name for name, expected in tested if not expected.strip()} == alerts
    assert {name for name, expected in tested if expected.strip() == "[]"} == alerts


def test_every_alert_is_explained() -> None:
    explained = re.findall(
        r"^\| `(ZitharaWorker\w+)` \| [^|]+ \| [^|]+ \|$", (ROOT / "docs/operations.md").read_text(), re.M
    )
    assert explained == re.findall(r"- alert: (\w+)", RULES.read_text())


@pytest.mark.parametrize("path", [RULES, RULE_TESTS, DASHBOARD], ids=lambda path: path.name)
def test_every_metric_named_exists(path: Path) -> None:
    named = set(re.findall(r"zithara_worker_\w+", path.read_text()))
    assert named and named <= existing_metrics(), named - existing_metrics()


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set(re.findall(r"zithara_worker_\w+", DASHBOARD.read_text()))
    families = {re.sub(r"_(bucket|sum|count)\Z", "", name) for name in shown}
    assert set(re.findall(r"`(zithara_worker_\w+)` \|", (ROOT / "docs/metrics.md").read_text())) == families


def test_dashboard_panels_do_not_overlap_and_their_queries_parse(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places and at["x"] + at["w"] <= 24, panel["title"]
        places |= cells
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(queries) > 20
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    checked = tmp_path / "queries.yml"  # JSON is YAML
    checked.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(checked))


def test_what_other_monitoring_systems_run_exists() -> None:
    command = importlib.import_module("zithara_worker.commands.check").check
    known = {option for parameter in command.params for option in parameter.opts}
    for name in ("nagios.cfg", "icinga2.conf", "zabbix_agent.conf", "monit.conf"):
        text = (MONITORING / name).read_text()
        assert "/usr/bin/zithara-worker" in text and "check" in text
        assert set(re.findall(r"--(?:age|failed|pending)-\w+", text)) <= known, name
