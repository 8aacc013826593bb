"""The memory for the bodies of requests that are under way: one bound for the whole process."""

from __future__ import annotations

from collections.abc import Callable

_MOST_BYTES = 64 * 2**20
_SMALL_BYTES = 16 * 2**10  # more than any callback of MetaStudio has


class BodyMemory:
    """How many bytes the bodies that are being received, or wait for the disk, may take.

    `max_body_bytes` is the most that one may have. Large bodies leave a quarter for small ones, so that few clients
    who send large ones slowly do not keep out callbacks, which are small. Stale ones take no more than a quarter.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._most = max(_MOST_BYTES, 4 * max_body_bytes)
        self._taken = 0

    def take(self, length: int, *, is_stale: bool) -> bool:
        """Whether there is room for a body of at most `length` bytes; if so, it is taken until `give_back`."""
        most = self._most // 4 if is_stale else self._most
        if not is_stale and length > _SMALL_BYTES:
            most -= self._most // 4
        if self._taken + length > most:
            return False
        self._taken += length
        return True

    def give_back(self, length: int) -> None:
        """The body of at most `length` bytes is no longer in memory."""
        self._taken -= length


class TokenBucket:
    """Lets `capacity` tokens through at once, then `per_second`."""

    def __init__(self, capacity: float, per_second: float, clock: Callable[[], float]) -> None:
        self._capacity = self._left = capacity
        self._per_second = per_second
        self._clock = clock
        self._at = clock()

    def take(self, tokens: int) -> bool:
        """Whether `tokens` are left; if so, they are taken."""
        now = self._clock()
        self._left = min(self._capacity, self._left + (now - self._at) * self._per_second)
        self._at = now
        if tokens > self._left:
            return False
        self._left -= tokens
        return True

    def give_back(self, tokens: int) -> None:
        """So many of those that were taken were not needed."""
        self._left = min(self._capacity, self._left + tokens)
