"""Decrypts values that Magento encrypted with the key of env.php, such as fields of the type 'obscure'.

Knows how they are stored and the only cipher that Magento writes today; knows no table and no file.
Source: Magento\\Framework\\Encryption\\Encryptor, `decrypt`, and its Adapter\\SodiumChachaIetf.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from zithara_worker.errors import ConfigurationError

_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32
#: ConfigOptionsListConstants::STORE_KEY_ENCODED_RANDOM_STRING_PREFIX. The key follows it, in base64.
_ENCODED_KEY_PREFIX = "base64"

_CHACHA20_POLY1305 = 3
#: Encryptor::CIPHER_BLOWFISH, CIPHER_RIJNDAEL_128 and CIPHER_RIJNDAEL_256, with their block sizes in bytes.
_OLD_BLOCK_BYTES = {0: 8, 1: 16, 2: 32}

#: key number : cipher version : [initialization vector, CIPHER_RIJNDAEL_256 only :] base64
_STORED = re.compile(r"(\d{1,4}):(\d{1,2}):(?:([^:]{32}):)?([A-Za-z0-9+/]+={0,2})")

_REMEDY = "set [zithara] client_secret in the worker's configuration"


def is_encrypted(value: str) -> bool:
    """Whether `value` has the form of Magento's encrypted values.

    Checks the lengths too, so that a plain secret with colons ('1:3:abc') counts as plain.
    """
    return _parts(value) is not None


def decrypt(value: str, keys: Sequence[str]) -> str:
    """The text that Magento encrypted; a value that is not encrypted, unchanged.

    `keys`: all keys of env.php's crypt/key, the oldest first, as written there; the value names its key by number.
    Raises ConfigurationError if the key is missing or wrong, if the cipher is one of Magento 1 or early Magento 2, or
    if the package `cryptography` is not installed. Neither the value nor a key is in its text.
    """
    parts = _parts(value)
    if parts is None:
        return value
    key_number, cipher, sealed = parts
    if cipher != _CHACHA20_POLY1305:
        raise ConfigurationError(
            f"the value is encrypted with Magento's cipher version {cipher}; only version {_CHACHA20_POLY1305} can be "
            f"read: save the value again in Magento's admin, or {_REMEDY}"
        )
    if key_number >= len(keys):
        raise ConfigurationError(
            f"the value is encrypted with key number {key_number}, but crypt/key in app/etc/env.php gives "
            f"{len(keys)} key(s) that can be read here: add the missing key there, or {_REMEDY}"
        )
    key = _key_bytes(keys[key_number], key_number)
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    except ImportError as error:
        raise ConfigurationError(
            "the value is encrypted, and the Python package cryptography is not installed: install it "
            f"(Debian: apt install python3-cryptography; pip: pip install 'zithara-worker[crypt]'), or {_REMEDY}"
        ) from error
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        # Magento passes the nonce as the additional data, too.
        opened = ChaCha20Poly1305(key).decrypt(nonce, ciphertext, nonce)
        # Magento trims the text after decryption; these are the characters of PHP's trim().
        return opened.strip(b" \t\n\r\0\x0b").decode()
    except (InvalidTag, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the value cannot be decrypted with key number {key_number} of crypt/key in app/etc/env.php: is that "
            f"file of the same shop as the database? Correct [magento] root, save the value again in Magento's admin, "
            f"or {_REMEDY}"
        ) from error


def _parts(value: str) -> tuple[int, int, bytes] | None:
    """Key number, cipher version and encrypted bytes; None if `value` does not have Magento's form."""
    match = _STORED.fullmatch(value)
    if match is None:
        return None
    cipher = int(match[2])
    try:
        sealed = base64.b64decode(match[4], validate=True)
    except binascii.Error:
        return None
    block = _OLD_BLOCK_BYTES.get(cipher)
    if block is not None:
        possible = len(sealed) % block == 0 and (match[3] is None or cipher == 2)
    else:
        # Also for ciphers of later versions of Magento: they will not need fewer bytes than a nonce and a tag.
        possible = len(sealed) >= _NONCE_BYTES + _TAG_BYTES and match[3] is None
    return (int(match[1]), cipher, sealed) if possible else None


def _key_bytes(key: str, number: int) -> bytes:
    encoded = key.startswith(_ENCODED_KEY_PREFIX)
    try:
        found = base64.b64decode(key[len(_ENCODED_KEY_PREFIX) :], validate=True) if encoded else key.encode()
    except ValueError:
        found = b""
    if len(found) != _KEY_BYTES:
        raise ConfigurationError(
            f"key number {number} of crypt/key in app/etc/env.php is not a key of {_KEY_BYTES} bytes "
            f"(as it is, or in base64 after '{_ENCODED_KEY_PREFIX}'): restore the shop's key, or {_REMEDY}"
        )
    return found
