"""A journal for tests, and deliveries to append to it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from receiver.delivery import Delivery
from receiver.journal.journal import Journal
from receiver.metrics import Metrics


def delivery(body: bytes) -> Delivery:
    return Delivery("default", 1726012345.25, 1725928200.0, b"66df9308", body)


def numbered(count: int, size: int = 0) -> list[Delivery]:
    return [delivery(b"%d".ljust(size) % number) for number in range(count)]


@contextmanager
def opened(path: Path, max_bytes: int = 2**30, metrics: Metrics | None = None) -> Iterator[Journal]:
    journal = Journal(path, max_bytes, metrics or Metrics(), threading.Event())
    try:
        yield journal
    finally:
        journal.close()


def append(journal: Journal, *deliveries: Delivery) -> list[str]:
    """Append all in one turn of a loop; returns what kept each from the disk, or nothing."""

    async def gather() -> list[Any]:
        return await asyncio.gather(*map(journal.append, deliveries), return_exceptions=True)

    return [str(error or "") for error in asyncio.run(gather())]


def run_in_child(function: Callable[..., None], *arguments: str, within: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run `function` in a process of its own, started by the command `within`; returns exit code and output."""
    name = function.__name__
    code = f"import sys; from {function.__module__} import {name}; {name}(*sys.argv[1:])"
    command = [*within, sys.executable, "-c", code, *arguments]
    folder = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    return done.returncode, done.stdout
