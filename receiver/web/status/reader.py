"""Reads beside the event loop: one at a time, with a deadline, and each result shared for a moment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")
DEADLINE = 2.0  # seconds
SHARED = 2.0  # seconds


class NotReadError(Exception):
    """What is to be read cannot be. The message says why, without secrets."""


class _Kept(NamedTuple):
    until: float
    result: Any
    error: Exception | None


class Reader:
    """Runs reads in a thread of its own, which keeps nothing waiting: not the event loop, and not the process's end."""

    def __init__(self, deadline: float = DEADLINE, clock: Callable[[], float] = time.monotonic) -> None:
        self._deadline = deadline
        self._clock = clock
        self._under_way: asyncio.Future[None] | None = None
        self._began = 0.0
        self._kept: dict[Hashable, _Kept] = {}

    async def read(self, key: Hashable, work: Callable[[], _T]) -> _T:
        """What `work` gives, or gave a moment ago for the same `key`; raises what it raises.

        Raises `NotReadError` where it, or another read that is under way, takes longer than the deadline.
        """
        try:
            async with asyncio.timeout(self._deadline):
                kept = await self._read(key, work)
        except TimeoutError:
            raise NotReadError(f"no answer for {self._deadline:g} s") from None
        if kept.error is not None:
            raise kept.error
        result: _T = kept.result
        return result

    async def _read(self, key: Hashable, work: Callable[[], Any]) -> _Kept:
        while (kept := self._kept.get(key)) is None or kept.until < self._clock():
            if self._under_way is None:
                self._under_way = self._start(key, work)
            elif self._clock() > self._began + self._deadline:  # stuck: nobody else waits for it
                raise TimeoutError
            await asyncio.wait([self._under_way])  # which does not cancel it
        return kept

    def _start(self, key: Hashable, work: Callable[[], Any]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._began = self._clock()
        self._kept = {one: kept for one, kept in self._kept.items() if kept.until >= self._clock()}

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except Exception as caught:  # noqa: BLE001 (is raised where it is waited for)
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._finish, done, _Kept(self._clock() + SHARED, result, error), key)

        # Not of a pool: the interpreter would wait for its threads when it ends.
        threading.Thread(target=run, name="status page", daemon=True).start()
        return done

    def _finish(self, done: asyncio.Future[None], kept: _Kept, key: Hashable) -> None:
        self._kept[key] = kept
        self._under_way = None
        done.set_result(None)
