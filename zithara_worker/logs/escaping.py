"""What makes a text safe for a terminal, whoever wrote it. Letters of all scripts stay readable."""

from __future__ import annotations

import re

#: Steer a terminal (C0 but tab and line feed, DEL, C1), turn the direction of what follows, or end a line. The joiners
#: U+200C and U+200D stay: Hindi needs them.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """`text` with \\uXXXX in place of what steers a terminal; JSON stays the same value."""
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def blanked(text: str) -> str:
    """`text` on one line, with a blank in place of what steers a terminal."""
    return _STEERING.sub(" ", text).replace("\n", " ").replace("\t", " ")
