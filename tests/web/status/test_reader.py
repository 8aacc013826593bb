from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from receiver.web.status.reader import NotReadError, Reader

STUCK = """
import asyncio, threading
from receiver.web.status.reader import NotReadError, Reader
async def main():
    try:
        await Reader(0.05).read("", threading.Event().wait)
    except NotReadError:
        print("given up", flush=True)
asyncio.run(main())
"""


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """A read that takes until it is released, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_end = threading.Event()
        self.has_ended = threading.Event()

    def __call__(self) -> int:
        self.calls += 1
        self.may_end.wait(60)
        self.has_ended.set()
        return self.calls


async def others() -> None:
    """Let the other tasks run until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_shared_by_those_who_ask_meanwhile() -> None:
    """Many who ask at once cost one read, and so do those who ask within a moment; then it is read anew."""

    async def scenario() -> None:
        clock = Clock()
        reader, work = Reader(60, clock), Work()
        asking = [asyncio.create_task(reader.read("", work)) for _ in range(20)]
        await others()
        work.may_end.set()
        assert await asyncio.gather(*asking) == [1] * 20
        clock.now = 1.9
        assert await reader.read("", work) == 1
        clock.now = 2.1
        assert await reader.read("", work) == 2

    asyncio.run(scenario())


def test_one_at_a_time() -> None:
    """What is different is read one after the other, and each gets its own."""

    async def scenario() -> None:
        reader, work, running = Reader(60), Work(), []

        def other() -> str:
            running.append(work.has_ended.is_set())
            return "other"

        first = asyncio.create_task(reader.read("", work))
        await others()
        second = asyncio.create_task(reader.read("job", other))
        await others()
        assert running == []
        work.may_end.set()
        assert (await first, await second) == (1, "other")
        assert running == [True]

    asyncio.run(scenario())


def test_deadline() -> None:
    """A read that is stuck is given up in time, for those who come later at once, and nothing is begun beside it."""

    async def scenario() -> None:
        clock = Clock()
        reader, work = Reader(0.2, clock), Work()
        with pytest.raises(NotReadError, match=r"no answer for 0\.2 s"):
            await reader.read("", work)
        clock.now = 0.3
        with pytest.raises(NotReadError):
            await asyncio.wait_for(reader.read("job", work), 60)
        assert work.calls == 1
        work.may_end.set()

    asyncio.run(scenario())


def test_errors_are_shared_too() -> None:
    """What fails is not tried again and again."""

    async def scenario() -> None:
        reader, calls = Reader(60, Clock()), []

        def fail() -> None:
            calls.append(time.monotonic())
            raise ValueError("no")

        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                await reader.read("", fail)
        assert len(calls) == 1

    asyncio.run(scenario())


def test_who_goes_away_ends_no_read() -> None:
    """Where the one who asked first is cancelled, the others still get it."""

    async def scenario() -> None:
        reader, work = Reader(60), Work()
        first, second = (asyncio.create_task(reader.read("", work)) for _ in range(2))
        await others()
        first.cancel()
        await others()
        work.may_end.set()
        assert await second == 1

    asyncio.run(scenario())


def test_stuck_read_keeps_no_process(tmp_path: Path) -> None:
    """A read that never ends does not keep the process from ending."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "given up\n"
