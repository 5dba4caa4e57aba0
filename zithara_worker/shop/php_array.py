"""A parser for the array that a PHP file returns.

Knows as much of PHP as Magento's configuration files use: one returned array of literals, concatenation, defaults and a
few constants. Nothing is executed, and no environment variable is read: getenv() in PHP reads the web server's
environment, and this process's could belong to another shop. An expression that only PHP can evaluate makes its own
value unknown, and the rest of the file stays usable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

from zithara_worker.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """A value that cannot be determined without PHP, such as getenv(). An expression that contains it, `?? 'default'`
    included, is unknown too."""

    line: int
    why: str


# PHP has one array type: a list is an array with the keys 0, 1, 2...
_Key: TypeAlias = "str | int | Unknown"
Value: TypeAlias = "str | int | float | bool | Unknown | dict[_Key, Value] | None"

#: Constants whose numbers do not depend on the shop (PDO's are those of mysqlnd, PHP's own MySQL library).
_CONSTANTS: Mapping[str, str | int | bool | None] = {
    "true": True,
    "false": False,
    "null": None,
    "directory_separator": "/",
    "pdo::mysql_attr_ssl_ca": 1009,
    "pdo::mysql_attr_ssl_verify_server_cert": 1014,
    "pdo\\mysql::attr_ssl_ca": 1009,
    "pdo\\mysql::attr_ssl_verify_server_cert": 1014,
}
_MAX_DEPTH = 60
_INT_MAX = 2**63 - 1

_TOKEN = re.compile(
    r"""(?P<blank>\s+ | (?:\#|//)(?:(?!\?>)[^\r\n])* | /\*.*?\*/)
      | (?P<single>'[^'\\]*(?:\\.[^'\\]*)*')
      | (?P<double>"[^"\\]*(?:\\.[^"\\]*)*")
      | (?P<number>0[xX][\da-fA-F][\da-fA-F_]* | 0[bB][01][01_]* | 0[oO][0-7][0-7_]*
          | (?:\d[\d_]*\.?\d*[\d_]* | \.\d[\d_]*)(?:[eE][+-]?\d+)?)
      | (?P<name>\\?[A-Za-z_\u0080-\U0010ffff][\w\u0080-\U0010ffff]*(?:\\[\w\u0080-\U0010ffff]+)*)
      | (?P<variable>\$[A-Za-z_]\w*)
      | (?P<sign>=>|\?\?|::|->|\?>|<<<|[^'"])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(rb'\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|u\{([0-9a-fA-F]+)\}|([nrtvef\\$"]))')
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"e": b"\x1b", b"f": b"\f"}
_INTERPOLATED = re.compile(r"(?<!\\)(?:\\\\)*(?:\$[A-Za-z_{\u0080-\U0010ffff]|\{\$)")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


class _Beyond(Exception):
    """The parser found an expression that it cannot evaluate. Caught within this module."""


def read_returned_array(path: Path) -> Value:
    """The array that the PHP file at `path` returns; see `parse_returned_array`. Raises ConfigurationError."""
    try:
        # Bytes that are not UTF-8 may be in a comment. They are an error only in a value that is used.
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror or error}; correct [magento] root, let this user read the file "
            "(often: add it to the web server's group), or leave root empty and set [database] host, user, password "
            "and name"
        ) from error
    return parse_returned_array(text, path)


def parse_returned_array(text: str, path: Path) -> Value:
    """The array that the PHP code in `text` returns. Arrays and lists are dicts; `path` is the file, for __DIR__.

    Raises ConfigurationError with the line if the code returns anything else, or cannot be read.
    """
    return _Parser(_tokens(text, path), path).file()


def _fail(path: Path, line: int, seen: str) -> NoReturn:
    raise ConfigurationError(
        f"{path}, line {line}: {seen}; the worker reads this file without PHP and expects '<?php return [...];': "
        "correct it, or leave [magento] root empty and set [database] host, user, password, name and table_prefix"
    )


def _tokens(text: str, path: Path) -> list[_Token]:
    opening = re.match(r"<\?php(?=\s)", text, re.IGNORECASE)
    if opening is None:
        _fail(path, 1, "the file does not begin with <?php")
    tokens: list[_Token] = []
    position, line = opening.end(), 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        kind = match.lastgroup if match else None
        if match is None or kind is None:
            _fail(path, line, "a string is not closed")
        if match[0] == "<<<":
            _fail(path, line, "a heredoc text begins here")
        if text.startswith("/*", position) and kind != "blank":
            _fail(path, line, "a comment is not closed")
        if kind != "blank":
            tokens.append(_Token(kind, match[0], line))
        line += match[0].count("\n")
        position = match.end()
    return [*tokens, _Token("end", "", line)]


class _Parser:
    """A recursive descent parser that evaluates what it parses."""

    def __init__(self, tokens: list[_Token], path: Path) -> None:
        self._tokens = tokens
        self._path = path
        self._next = 0
        self._depth = 0

    def file(self) -> Value:
        """Parses a file: declare(...); use ...; return <array>;"""
        while self._token.text.lower() in ("declare", "use"):
            while self._token.text not in (";", ""):
                self._next += 1
            self._take(";")
        if self._token.text.lower() != "return":
            _fail(self._path, self._token.line, f"{self._token.text[:30]!r} stands where 'return' should")
        self._next += 1
        start = self._token
        try:
            value = self._expression()
        except _Beyond:
            value = None
        if not isinstance(value, dict):
            _fail(self._path, start.line, "what is returned is not a plain array")
        if self._token.text not in (";", "?>"):
            what = f"{self._token.text[:30]!r} follows the array" if self._token.text else "the file ends too early"
            _fail(self._path, self._token.line, what)
        return value

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> bool:
        """Consumes the next tokens if they are these signs or names (in any case); whether it did."""
        upcoming = self._tokens[self._next : self._next + len(texts)]
        if len(upcoming) < len(texts) or any(
            token.kind not in ("sign", "name", "variable") or token.text.lower() != text.lower()
            for token, text in zip(upcoming, texts, strict=True)
        ):
            return False
        self._next += len(texts)
        return True

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise _Beyond

    # PHP's precedence, from the tightest: . then ?? then ?:

    def _expression(self) -> Value:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            _fail(self._path, self._token.line, f"values are nested more than {_MAX_DEPTH} deep")
        value = self._coalesced()
        while self._take("?", ":"):
            other = self._coalesced()
            if _is_falsy(value):
                value = other
        self._depth -= 1
        return value

    def _coalesced(self) -> Value:
        value = self._concatenated()
        while self._take("??"):
            other = self._concatenated()
            if value is None:
                value = other
        return value

    def _concatenated(self) -> Value:
        value = self._single()
        while self._take("."):
            value = _joined(value, self._single())
        return value

    def _single(self) -> Value:
        token = self._token
        if token.kind == "single":
            self._next += 1
            return re.sub(r"\\([\\'])", r"\1", token.text[1:-1])
        if token.kind == "double":
            self._next += 1
            return _unescaped(token.text[1:-1])
        if token.kind == "number":
            self._next += 1
            return _number(token.text)
        if token.kind == "variable":
            return self._superglobal()
        if token.kind == "name":
            return self._named()
        if self._take("-"):
            if self._token.kind != "number":
                raise _Beyond
            self._next += 1
            return -_number(self._tokens[self._next - 1].text)
        if self._take("["):
            return self._array("]")
        if self._take("("):
            value = self._expression()
            self._need(")")
            return value
        raise _Beyond

    def _superglobal(self) -> Value:
        token = self._token
        if not (self._take("$_ENV", "[") or self._take("$_SERVER", "[")):
            raise _Beyond
        name = self._expression()
        self._need("]")
        return _of_environment(f"{token.text}[%s]", name, token.line)

    def _named(self) -> Value:
        token = self._token
        if self._take("array", "("):
            return self._array(")")
        if self._take("getenv", "(") or self._take("\\getenv", "("):
            variable = None if self._token.text == ")" else self._expression()
            while self._take(","):
                self._expression()
            self._need(")")
            return _of_environment("getenv(%s)", variable, token.line)
        self._next += 1
        name = token.text.removeprefix("\\")
        if self._take("::"):
            if self._token.kind != "name":
                raise _Beyond
            name += f"::{self._token.text}"
            self._next += 1
        if self._token.text in ("(", "::", "->"):
            raise _Beyond
        if name.upper() == "__DIR__":
            return str(self._path.parent)
        if name == "BP":
            # app/bootstrap.php defines BP as the shop's root; this file is in its app/etc.
            return str(self._path.parent.parent.parent)
        if name.lower() in _CONSTANTS:
            return _CONSTANTS[name.lower()]
        return Unknown(line=token.line, why=f"the constant {name} is not known outside PHP")

    def _array(self, closing: str) -> dict[_Key, Value]:
        array: dict[_Key, Value] = {}
        index = 0
        while not self._take(closing):
            line = self._token.line
            key, value = self._element(closing)
            if key is None:
                key, index = index, index + 1
            elif isinstance(key, int):
                index = max(index, key + 1)
            array[key] = value
            if not self._take(",") and not (self._token.kind == "sign" and self._token.text == closing):
                _fail(self._path, line, f"the array that should end with {closing!r} is not closed")
        return array

    def _element(self, closing: str) -> tuple[_Key | None, Value]:
        """Parses one `value` or `key => value`. One that cannot be evaluated becomes an Unknown."""
        start, depth = self._next, self._depth
        key: _Key | None = None
        try:
            value = self._expression()
            if self._take("=>"):
                key = _array_key(value)
                value = self._expression()
            if self._token.kind == "sign" and self._token.text in (",", closing):
                return key, value
        except _Beyond:
            pass  # the element becomes an Unknown below
        self._depth = depth
        line = self._token.line
        self._next = start
        self._skip_element()
        unknown = Unknown(line=line, why="this expression can only be evaluated by PHP")
        return (unknown if key is None else key), unknown

    def _skip_element(self) -> None:
        open_brackets = 0
        while (token := self._token).kind != "end":
            if token.kind == "sign":
                if open_brackets == 0 and token.text in (",", "]", ")", "}", ";"):
                    return
                open_brackets += (token.text in ("[", "(", "{")) - (token.text in ("]", ")", "}"))
            self._next += 1


def _of_environment(call: str, variable: Value, line: int) -> Unknown:
    shown = call % (repr(variable) if isinstance(variable, str) else "...")
    return Unknown(line=line, why=f"{shown} reads the environment of PHP, which the worker does not share")


def php_text(value: Value) -> str:
    """The value as PHP would be given it on one line. What only PHP can determine is marked, and no valid PHP."""
    if isinstance(value, Unknown):
        return f"<as in line {value.line}>"
    if isinstance(value, dict):
        listed = list(value) == list(range(len(value)))
        parts = (php_text(each) if listed else f"{php_text(key)} => {php_text(each)}" for key, each in value.items())
        return f"[{', '.join(parts)}]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _is_falsy(value: Value) -> bool:
    return not isinstance(value, Unknown) and (value in ("", "0") or not value)


def _joined(left: Value, right: Value) -> Value:
    for value in (left, right):
        if isinstance(value, Unknown):
            return Unknown(line=value.line, why=value.why)
    return _as_text(left) + _as_text(right)


def _as_text(value: Value) -> str:
    """PHP's conversion to a string."""
    if isinstance(value, bool):
        return "1" if value else ""
    if isinstance(value, str | int):
        return str(value)
    if value is None:
        return ""
    raise _Beyond


def _array_key(value: Value) -> _Key:
    """PHP's conversion of array keys: '8' is 8 (but '08' stays), true 1, null ''."""
    if value is None:
        return ""
    if isinstance(value, str):
        canonical = re.fullmatch(r"0|-?[1-9]\d{0,18}", value, re.ASCII) and -_INT_MAX - 1 <= int(value) <= _INT_MAX
        return int(value) if canonical else value
    if isinstance(value, Unknown):
        return value
    if isinstance(value, dict) or not -_INT_MAX <= value <= _INT_MAX:
        raise _Beyond
    return int(value)


def _number(text: str) -> int | float:
    plain = text.replace("_", "").lower()
    if len(plain) > 40:
        raise _Beyond
    if plain.startswith(("0x", "0b", "0o")):
        number: int | float = int(plain, 0)
    elif plain.isdigit():
        number = int(plain, 8) if plain.startswith("0") and set(plain) <= set("01234567") else int(plain)
    else:
        return float(plain)
    return number if number <= _INT_MAX else float(number)


def _unescaped(text: str) -> str:
    """A text in double quotes, unescaped. PHP's strings are bytes, so "\\xc3\\xa9" is one character."""
    if _INTERPOLATED.search(text):
        raise _Beyond

    def replaced(match: re.Match[bytes]) -> bytes:
        octal, hexadecimal, point, letter = match.groups()
        if octal is not None:
            return bytes([int(octal, 8) & 0xFF])
        if hexadecimal is not None:
            return bytes([int(hexadecimal, 16)])
        if point is not None:
            if int(point, 16) > 0x10FFFF:
                raise _Beyond
            return chr(int(point, 16)).encode("utf-8", "surrogatepass")
        return _ESCAPED.get(letter, letter)

    return _ESCAPE.sub(replaced, text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
