"""API keys: the file that lists them, how one is made, and how the key of a request is found.

Only hashes are kept. A key has 256 random bits, so that nobody can try keys until one fits a stolen hash, however fast
the hash is: a slow one, as passwords need it, would cost each request milliseconds and gain nothing. Hence SHA-256.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from server.cli_errors import UsageError

RouteGroup = Literal["models", "control", "metrics", "admin"]
"""What a key may use: the model's own routes; closing the thinking of what runs; /metrics; what changes the server."""
GROUPS: tuple[RouteGroup, ...] = ("models", "control", "metrics", "admin")
PREFIX = "sk-twogear-"
SECRET_BYTES = 32
HASH = "sha256:"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$"

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be asked. None: as much as one likes. Tokens are those of prompts and of all that is generated.

    `running`: requests at once; `n`: choices of one request.
    """

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    running: Positive | None = None
    n: Positive | None = None


NO_LIMITS = Limits()


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key. `modes` None: all. `priority`: whether its requests may set theirs.

    `limits` are for all its requests together; `mode_limits` hold beside them, for those in one mode.
    """

    name: Annotated[str, msgspec.Meta(pattern=NAME)]
    hash: Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
    modes: tuple[str, ...] | None = None
    routes: tuple[RouteGroup, ...] = ("models", "control")
    priority: bool = False
    limits: Limits = NO_LIMITS
    mode_limits: Mapping[str, Limits] = {}


class KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of keys. `open` are the routes that nobody needs a key for."""

    open: tuple[RouteGroup, ...] = ()
    keys: tuple[Key, ...] = ()


def new_secret() -> str:
    """A new key, as a client sends it."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def hash_of(secret: bytes) -> str:
    """What is kept of a key."""
    return HASH + hashlib.sha256(secret).hexdigest()


def load_keys(path: Path) -> KeyFile:
    """Reads a file of keys. Raises UsageError, in one line, when it cannot be read or does not fit."""
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=KeyFile)
    except OSError as error:
        raise UsageError(f"cannot read the keys in {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"keys in {path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"keys in {path}: nested too deeply") from error
    if not file.keys:
        raise UsageError(f"keys in {path}: there is none; twogear keys new NAME makes one")
    for field in ("name", "hash"):
        if twice := _twice(getattr(key, field) for key in file.keys):
            raise UsageError(f"keys in {path}: two have the {field} {twice}")
    return file


def check_modes(file: KeyFile, modes: Iterable[str]) -> None:
    """Raises UsageError where a key names a mode that the profile lacks: it would allow less, or more, than meant."""
    known = list(modes)
    for key in file.keys:
        for mode in [*(key.modes or ()), *key.mode_limits]:
            if mode not in known:
                raise UsageError(f"key {key.name}: there is no mode {mode!r}; the profile has {', '.join(known)}")


def plain_keys(hashes: Sequence[str]) -> KeyFile:
    """The keys of the command line and the environment, which may do everything; /metrics is open, as in vLLM."""
    names = ["default", *(f"default-{number}" for number in range(2, len(hashes) + 1))]
    keys = [Key(name=name, hash=one, routes=GROUPS, priority=True) for name, one in zip(names, hashes, strict=False)]
    return KeyFile(open=("metrics",), keys=tuple(keys))


def keys_of(path: Path | None, hashes: Sequence[str]) -> KeyFile | None:
    """The keys of a file, and those of the command line and the environment; None without any. Raises UsageError."""
    if path is None:
        return plain_keys(hashes) if hashes else None
    file = load_keys(path)
    names, known = {key.name for key in file.keys}, {key.hash for key in file.keys}
    others = [key for key in plain_keys(hashes).keys if key.hash not in known]
    if taken := names & {key.name for key in others}:
        raise UsageError(f"keys in {path}: {', '.join(taken)} is the name of a key that the command line has")
    return msgspec.structs.replace(file, keys=(*file.keys, *others))


def client_headers(environment: Mapping[str, str] = os.environ, *, key: str | None = None) -> dict[str, str]:
    """What our own clients send of `key`, or of the one that the environment has. Raises UsageError."""
    key = key or environment.get("TWOGEAR_API_KEY") or environment.get("OPENAI_API_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError("the API key has characters that cannot be sent in a header")
    return {"Authorization": f"Bearer {key}"} if key else {}


class KeyRing:
    """The keys of a server, to find the one that a request brings."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._pepper = secrets.token_bytes(SECRET_BYTES)
        self._keys = {self._place(key.hash): key for key in keys}

    def find(self, secret: bytes) -> Key | None:
        """The key, if it is one of them; in a time that tells nothing of how close another key is.

        Where it is looked for depends on a random value of this process. What is found there is compared in constant
        time.
        """
        hashed = hash_of(secret)
        key = self._keys.get(self._place(hashed))
        return key if key is not None and compare_digest(key.hash, hashed) else None

    def _place(self, hashed: str) -> bytes:
        return hashlib.blake2b(hashed.encode(), key=self._pepper, digest_size=16).digest()


def _twice(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
