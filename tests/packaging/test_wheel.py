"""The SQL files travel with the code, whichever way it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_wheel_carries_the_sql_files_and_finds_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "zithara_worker", "sql"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        capture_output=True,
        text=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"zithara_worker/sql/{path.name}" for path in (ROOT / "sql").glob("*.sql")} <= names
    assert "zithara_worker/py.typed" in names
    assert {f"zithara_worker/sandbox/real_shop/{name}" for name in ("tables.json", "messages.jsonl")} <= names
    code = (
        "import zithara_worker.sql, zithara_worker.database.statements as s; "
        "print(zithara_worker.sql.__file__); print(len(s.queries()), len(s.script('schema.sql', prefix='')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    where, counts = done.stdout.splitlines()
    assert where.startswith(str(tmp_path)), "the wheel's own files, not the checkout's"
    assert [int(count) > 3 for count in counts.split()] == [True, True]
