"""What a server or a customer wrote does not steer the terminal it is shown on."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest

from zithara_worker.commands import terminal
from zithara_worker.commands.terminal import print_json, printable
from zithara_worker.logs import handlers as logs
from zithara_worker.logs.escaping import blanked, escaped
from zithara_worker.settings.sections import LoggingSettings

STEERING = ("\x1b", "\x7f", "\x9b", "\u061c", "\u200f", "\u2028", "\u2029", "\u202e", "\u2067")
HINDI = "\u0915\u094d\u200d\u0937 \u0906\u0936\u093e"


@pytest.mark.parametrize("character", STEERING)
def test_steering_characters_are_escaped_and_json_keeps_its_value(character: str) -> None:
    value = {"name": f"a{character}b {HINDI}", "n": [1]}
    text = escaped(json.dumps(value, ensure_ascii=False, indent=2))
    assert character not in text and HINDI in text
    assert json.loads(text) == value
    assert printable(f"a{character}b\nc") == blanked(f"a{character}b\nc") == "a b c"


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("character", STEERING)
def test_no_log_line_steers_a_terminal(form: str, character: str) -> None:
    stream = io.StringIO()
    logs.configure(LoggingSettings(format=form, level="DEBUG"), stream)  # type: ignore[arg-type]  # one of the two
    try:
        raise ValueError(f"x{character}y")
    except ValueError:
        logging.getLogger("zithara_worker.t").exception(f"a{character}b", extra={"response": f"c{character}d"})
    assert character not in stream.getvalue() and "Traceback" in stream.getvalue()


def test_commands_escape_what_they_print_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": f"a\x9bb {HINDI}"}
    print_json(value)
    printed = capsys.readouterr().out
    assert "\x9b" not in printed and HINDI in printed and json.loads(printed) == value


def test_every_command_prints_json_in_that_way() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(terminal.__file__).parent.glob("*.py")}
    printing = {name for name, source in sources.items() if re.search(r"echo\([^\n]*json\.dumps", source)}
    assert printing == {"terminal.py"}
