"""What a key may still ask: token buckets, requests at once, modes, choices; and the one who asks, as the core sees it.

Tokens are counted as they are: at its start a request lays aside what it may come to, at its end the difference goes
back.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from server.access.keys import NO_LIMITS, Key, Limits
from server.errors import BadRequestError, ForbiddenError, RateLimitError

MINUTE = 60.0
BUSY_SECONDS = 1  # until a place of a key may be free: nobody knows, but it is its own requests that it waits for

Clock = Callable[[], float]


class Bucket:
    """A token bucket of `limit` a minute, full at first. It may be in debt: what was used is taken in any case."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._at = clock()

    def level(self) -> float:
        """What it holds now."""
        now = self._clock()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / MINUTE)
        self._at = now
        return self._level

    def seconds_until(self, amount: float) -> float:
        """Until it holds `amount`, or as much of it as it ever can."""
        return max(0.0, (min(amount, self.limit) - self.level()) * MINUTE / self.limit)

    def take(self, amount: float) -> None:
        """Takes it, into debt if need be; a negative amount goes back."""
        self._level = min(self.limit, self.level() - amount)

    def resized(self, limit: int | None) -> "Bucket | None":
        """The same with another limit: what was used stays used."""
        if limit is None or limit == self.limit:
            return self if limit is not None else None
        made = Bucket(limit, self._clock)
        made.take(self.limit - self.level())
        return made


class Scope:
    """What one key has used: of all its limits, or of those for one mode."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._clock = clock
        self.limits = NO_LIMITS
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0
        self.adopt(limits)

    def adopt(self, limits: Limits) -> None:
        """Other limits; what is used and running stays counted."""
        self.limits = limits
        self.requests = self._bucket(self.requests, limits.requests_per_minute)
        self.tokens = self._bucket(self.tokens, limits.tokens_per_minute)

    def _bucket(self, had: Bucket | None, limit: int | None) -> Bucket | None:
        if had is not None:
            return had.resized(limit)
        return None if limit is None else Bucket(limit, self._clock)


class Account:
    """One key and what it has used. It outlives changes of the key, as long as its name stays."""

    def __init__(self, key: Key, clock: Clock = time.monotonic) -> None:
        self.key = key
        self._clock = clock
        self._all = Scope(key.limits, clock)
        self._modes: dict[str, Scope] = {}

    def adopt(self, key: Key) -> None:
        """The key as it is now."""
        self.key = key
        self._all.adopt(key.limits)
        for mode, scope in self._modes.items():
            scope.adopt(key.mode_limits.get(mode, NO_LIMITS))

    def scopes(self, mode: str) -> tuple[Scope, ...]:
        """Those that count a request in `mode`."""
        if mode not in self._modes:
            self._modes[mode] = Scope(self.key.mode_limits.get(mode, NO_LIMITS), self._clock)
        return self._all, self._modes[mode]


class Spending:
    """One request under way. `used` is what it came to, so far; at its end that is what counts."""

    def __init__(self, reserved: int) -> None:
        self.used = reserved


class Caller:
    """The one who sent a request: a key, or anyone, where the server has no keys.

    `name` is the key's, empty without. `limit_headers` are what the response tells of the limits, once it runs.
    """

    def __init__(self, account: Account | None = None) -> None:
        self._account = account
        self.name = "" if account is None else account.key.name
        self.limit_headers: list[tuple[bytes, bytes]] = []

    @property
    def may_set_priority(self) -> bool:
        """Whether its key says so."""
        return self._account is not None and self._account.key.priority

    @property
    def is_operator(self) -> bool:
        """Whether its key may use what changes the server, and so other clients' requests."""
        return self._account is not None and "admin" in self._account.key.routes

    def check(self, mode: str, n: int, n_field: str = "n") -> None:
        """Refuses before anything is done what would be refused later.

        `n`: choices, for all prompts together. Raises ForbiddenError for a mode, BadRequestError for too many choices,
        which `n_field` asks for, RateLimitError.
        """
        if self._account is None:
            return
        key, scopes = self._account.key, self._account.scopes(mode)
        if key.modes is not None and mode not in key.modes:
            raise ForbiddenError(f"The key {key.name!r} may use {_listed(key.modes)}, not the mode {mode}.")
        for scope in scopes:
            if scope.limits.n is not None and n > scope.limits.n:
                message = (
                    f"{n_field}: {n} choices are more than the {scope.limits.n} that the key {key.name!r} may have."
                )
                raise BadRequestError(message, param=n_field)
        self._check_quota(scopes, mode, 1)

    @contextmanager
    def spending(self, mode: str, reserved: int) -> Iterator[Spending]:
        """Counts a request during the block, with `reserved` tokens until it is known what it came to.

        Raises RateLimitError, before anything is counted. More tokens than a minute allows are laid aside as far as
        they fit, and what is used beyond that is a debt.
        """
        spent = Spending(reserved)
        if self._account is None:
            yield spent
            return
        scopes = self._account.scopes(mode)
        self._check_quota(scopes, mode, reserved)
        with ExitStack() as settling:
            for scope in scopes:
                settling.callback(_started(scope, spent))
            self.limit_headers = _headers(scopes)
            yield spent

    def _check_quota(self, scopes: Sequence[Scope], mode: str, tokens: int) -> None:
        for scope in scopes:
            limits, of = scope.limits, f"the key {self.name!r} in mode {mode}"
            if limits.running is not None and scope.running >= limits.running:
                message = f"{limits.running} requests of {of} are running, which is its limit."
                raise self._refused(message, "requests", BUSY_SECONDS, scopes)
            for kind, bucket, amount in (("requests", scope.requests, 1), ("tokens", scope.tokens, tokens)):
                seconds = 0.0 if bucket is None else bucket.seconds_until(amount)
                if bucket is not None and seconds > 0:
                    message = (
                        f"Rate limit reached for {of} on {kind} per minute: limit {bucket.limit}, "
                        f"remaining {max(0, int(bucket.level()))}, requested {amount}. Try again in {_span(seconds)}."
                    )
                    raise self._refused(message, kind, seconds, scopes)

    def _refused(self, message: str, kind: str, seconds: float, scopes: Sequence[Scope]) -> RateLimitError:
        self.limit_headers = _headers(scopes)
        return RateLimitError(message, kind=kind, retry_after=max(1, math.ceil(seconds)))


ANYONE = Caller()


def _started(scope: Scope, spent: Spending) -> Callable[[], None]:
    """Counts the start of a request; what is returned counts its end. A reload may change the buckets in between."""
    scope.running += 1
    laid_aside = 0 if scope.tokens is None else min(spent.used, scope.tokens.limit)
    if scope.requests is not None:
        scope.requests.take(1)
    if scope.tokens is not None:
        scope.tokens.take(laid_aside)

    def settle() -> None:
        scope.running -= 1
        if scope.tokens is not None:
            scope.tokens.take(spent.used - laid_aside)

    return settle


def _headers(scopes: Sequence[Scope]) -> list[tuple[bytes, bytes]]:
    """OpenAI's `x-ratelimit-…`, of the limit that leaves the least."""
    made = []
    for kind, buckets in (
        ("requests", [scope.requests for scope in scopes if scope.requests is not None]),
        ("tokens", [scope.tokens for scope in scopes if scope.tokens is not None]),
    ):
        if buckets:
            bucket = min(buckets, key=Bucket.level)
            values = str(bucket.limit), str(max(0, int(bucket.level()))), _span(bucket.seconds_until(bucket.limit))
            made += [
                (f"x-ratelimit-{what}-{kind}".encode(), value.encode())
                for what, value in zip(("limit", "remaining", "reset"), values, strict=True)
            ]
    return made


def _span(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1.2s`, `17ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return (f"{int(minutes)}m" if minutes else "") + f"{rest:g}s"


def _listed(modes: tuple[str, ...]) -> str:
    return f"the modes {', '.join(modes)}" if modes else "no mode"
