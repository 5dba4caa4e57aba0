"""What a server or a customer wrote does not steer the terminal it is shown on."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from zithara_worker.commands import rendering
from zithara_worker.commands.rendering import printable
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


@pytest.mark.parametrize("command", ["preview", "doctor", "failed", "pause", "status"])
def test_every_command_escapes_what_it_prints_as_json(command: str) -> None:
    source = (Path(rendering.__file__).parent / f"{command}.py").read_text(encoding="utf-8")
    printed = [line for line in source.splitlines() if "click.echo(" in line and "json.dumps(" in line]
    assert printed and all("click.echo(escaped(json.dumps(" in line for line in printed)
