"""Decryption of what Magento stores, against values that PHP's sodium has sealed in Magento's way."""

from __future__ import annotations

import base64
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.php import run_php

from zithara_worker.errors import ConfigurationError
from zithara_worker.shop.encryption import decrypt, is_encrypted

OLD_KEY = "0123456789abcdef0123456789abcdef"
RAW_KEY = bytes(range(32))
NEW_KEY = "base64" + base64.b64encode(RAW_KEY).decode()
OTHER_KEY = "f" * 32

#: What Magento does: a nonce of 12 bytes, which is the additional data too, in front of ciphertext and tag.
SEAL = """
[$text, $key, $number] = json_decode(stream_get_contents(STDIN));
$key = base64_decode($key);
$nonce = random_bytes(12);
$sealed = sodium_crypto_aead_chacha20poly1305_ietf_encrypt($text, $nonce, $nonce, $key);
echo $number . ':3:' . base64_encode($nonce . $sealed);
"""


def sealed_by_php(text: str, key: bytes, number: int) -> str:
    return run_php(SEAL, stdin=json.dumps([text, base64.b64encode(key).decode(), number]))


@pytest.mark.parametrize("text", ["s3cret", "Schlüssel & 秘密", "a:b:c"])
@pytest.mark.parametrize(("number", "raw"), [(0, OLD_KEY.encode()), (1, RAW_KEY)])
def test_value_sealed_by_php_opens_with_the_key_of_its_number(text: str, number: int, raw: bytes) -> None:
    stored = sealed_by_php(text, raw, number)

    assert is_encrypted(stored)
    assert decrypt(stored, [OLD_KEY, NEW_KEY]) == text


def test_white_space_around_the_text_goes_as_in_magento() -> None:
    assert decrypt(sealed_by_php(" s3cret\n\0", RAW_KEY, 0), [NEW_KEY]) == "s3cret"


def test_empty_text_is_sealed_too() -> None:
    assert decrypt(sealed_by_php("", RAW_KEY, 0), [NEW_KEY]) == ""


@pytest.mark.parametrize(
    "plain",
    [
        "",
        "s3cret",
        "1:3:abc",
        "0:3:" + base64.b64encode(b"x" * 27).decode(),
        "0:3:" + "=" * 40,
        "0:3:" + "A" * 41,
        "x:3:" + base64.b64encode(b"x" * 40).decode(),
        "0:3:" + base64.b64encode(b"x" * 40).decode() + "\n",
        "https://example.com:443:a",
        "0:1:" + base64.b64encode(b"x" * 15).decode(),
        "10:30:45",
    ],
)
def test_text_that_magento_cannot_have_sealed_is_plain(plain: str) -> None:
    assert not is_encrypted(plain)
    assert decrypt(plain, []) == plain


@given(st.text().filter(lambda text: text.count(":") not in (2, 3)))
def test_text_without_the_colons_of_magento_is_plain(text: str) -> None:
    assert decrypt(text, [OLD_KEY]) == text


@pytest.mark.parametrize(
    "stored",
    [
        "0:0:" + base64.b64encode(b"x" * 8).decode(),
        "0:1:" + base64.b64encode(b"x" * 16).decode(),
        "0:2:" + base64.b64encode(b"x" * 32).decode(),
        "0:2:" + "v" * 32 + ":" + base64.b64encode(b"x" * 64).decode(),
        "0:4:" + base64.b64encode(b"x" * 40).decode(),
    ],
)
def test_other_cipher_is_told_with_its_remedy(stored: str) -> None:
    assert is_encrypted(stored)
    with pytest.raises(
        ConfigurationError, match=rf"cipher version {stored[2]};.* save the value again .*client_secret"
    ):
        decrypt(stored, [OLD_KEY])


def test_absent_key_is_told_by_its_number() -> None:
    stored = sealed_by_php("s3cret", RAW_KEY, 2)

    with pytest.raises(ConfigurationError, match=r"key number 2, but crypt/key .* gives 1 key"):
        decrypt(stored, [OLD_KEY])


@pytest.mark.parametrize(
    "key", ["short", "base64!!!", "base64" + base64.b64encode(b"x" * 31).decode(), "é" * 32, "\udcff"]
)
def test_odd_key_is_told_without_showing_it(key: str) -> None:
    stored = sealed_by_php("s3cret", RAW_KEY, 0)

    with pytest.raises(ConfigurationError, match=r"key number 0 .* not a key of 32 bytes") as raised:
        decrypt(stored, [key])

    assert key not in str(raised.value) and repr(key).strip("'") not in str(raised.value)


def test_wrong_key_is_told_without_showing_key_or_value() -> None:
    stored = sealed_by_php("s3cret", RAW_KEY, 0)

    with pytest.raises(ConfigurationError, match="cannot be decrypted with key number 0") as raised:
        decrypt(stored, [OTHER_KEY])

    assert OTHER_KEY not in str(raised.value)
    assert stored not in str(raised.value)


def test_one_changed_byte_is_noticed() -> None:
    number, cipher, encoded = sealed_by_php("s3cret", RAW_KEY, 0).split(":")
    changed = bytearray(base64.b64decode(encoded))
    changed[14] ^= 1

    with pytest.raises(ConfigurationError, match="cannot be decrypted"):
        decrypt(f"{number}:{cipher}:{base64.b64encode(changed).decode()}", [NEW_KEY])


def test_missing_package_is_named_for_debian_and_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = sealed_by_php("s3cret", RAW_KEY, 0)
    for module in ("cryptography", "cryptography.exceptions", "cryptography.hazmat.primitives.ciphers.aead"):
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigurationError, match=r"python3-cryptography.*zithara-worker\[crypt\]"):
        decrypt(stored, [NEW_KEY])

    assert decrypt("plain", [NEW_KEY]) == "plain"
