"""Text of ours that a client keeps for us and sends back: sealed, so that only we can read it, make it or change it.

A thinking that comes back with the next request is one: `thinking` blocks' signatures, `encrypted_content`.
"""

import os
from base64 import b64decode, b64encode
from binascii import Error as NoBase64
from functools import cache
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_VARIABLE = "TWOGEAR_SEAL_KEY"
"""Holds a secret of any length, the same for all servers that shall read each other's seals and after a restart. Where
it is not set, a server has a key of its own until it ends."""
NONCE_BYTES = 12


def seal(kind: str, text: str) -> str:
    """A token for `text`, in base64; `kind` says what it is for, and `unseal` wants the same."""
    nonce = os.urandom(NONCE_BYTES)
    return b64encode(nonce + _cipher().encrypt(nonce, text.encode(), kind.encode())).decode()


def unseal(kind: str, token: str) -> str | None:
    """The text of a token that was made for `kind` with the same key; None for anything else."""
    try:
        sealed = b64decode(token, validate=True)
        return _cipher().decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], kind.encode()).decode()
    except (NoBase64, InvalidTag, ValueError):  # ValueError: too short, or no ASCII
        return None


@cache
def _cipher() -> AESGCM:
    secret = os.environ.get(KEY_VARIABLE)
    return AESGCM(sha256(secret.encode()).digest() if secret else os.urandom(32))
