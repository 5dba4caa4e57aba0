"""Makes any text safe for a terminal. Letters of all scripts stay readable."""

from __future__ import annotations

import re

#: Characters that control a terminal (C0 but tab and line feed, DEL, C1), change the direction of text, or end a line.
#: The joiners U+200C and U+200D are not among them: Hindi needs them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """`text` with \\uXXXX in place of control characters; JSON keeps its value."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def blanked(text: str) -> str:
    """`text` on one line, with a blank in place of each control character."""
    return _CONTROLS.sub(" ", text).replace("\n", " ").replace("\t", " ")
