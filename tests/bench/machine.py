"""Processes for the benchmarks, on all cores as users run them, or pinned with BENCH_PINNED=1.

Pinned, each server has one core, and each load generator another where there are two.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

from receiver.protocol.signature import sign
from tests.helpers.receiver import KEY, free_port, wait_until

ROOT = Path(__file__).parents[2]
URL = "https://localhost/callbacks/metastudio"
CONNECTIONS = 64
_CORES = sorted(os.sched_getaffinity(0))
PINNED = os.environ.get("BENCH_PINNED") == "1"
_ON_SERVER_CORE = ["taskset", "--cpu-list", str(_CORES[0])] if PINNED else []
_ON_LOAD_CORE = ["taskset", "--cpu-list", str(_CORES[-1])] if PINNED else []


class Server:
    """A process that serves callbacks on `port`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, operations_port: int = 0) -> None:
        self.process = process
        self.port = port
        self._operations_port = operations_port

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._operations_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"metastudio_{name}[ {{]", line))

    @property
    def peak_mib(self) -> float:
        """The most memory that it and the process that it has started have had, in MiB."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sum(_peak_mib(process) for process in (str(self.process.pid), *children))

    def wait_until_drained(self) -> None:
        """Wait until the journal is empty."""
        wait_until(lambda: self.metric("journal_events") == 0, "an empty journal", 1200)


@contextmanager
def serving(command: list[str], port: int, folder: Path, operations_port: int = 0, **environ: str) -> Iterator[Server]:
    """Run a server until the end of the block."""
    path = {"PYTHONPATH": str(ROOT)}
    with (folder / "server.log").open("ab") as log:
        started = [*_ON_SERVER_CORE, sys.executable, "-m", *command]
        process = subprocess.Popen(started, cwd=folder, env=os.environ | path | environ, stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(port) or process.poll() is not None, "a server")
        assert process.poll() is None, (folder / "server.log").read_text()
        yield Server(process, port, operations_port)
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def receiving(folder: Path, database_url: str = "sqlite:///var/receiver.db") -> Iterator[Server]:
    """Run the receiver on plain HTTP, as the others are."""
    port, operations_port = free_port(), free_port()
    environ = {
        "RECEIVER_LISTEN": f"127.0.0.1:{port}",
        "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{operations_port}",
        "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL,
        "RECEIVER_KEY": KEY,
        "RECEIVER_DATABASE_URL": database_url,
    }
    with serving(["receiver", "serve"], port, folder, operations_port, **environ) as server:
        yield server


@contextmanager
def comparing(folder: Path, name: str, *database_url: str) -> Iterator[Server]:
    """Run one of tests.bench.servers."""
    port = free_port()
    with serving(["tests.bench.servers", name, str(port), *database_url], port, folder) as server:
        yield server


def signed_query(*, right: bool = True) -> str:
    """A query that is signed now."""
    return urlsplit(sign(URL, KEY if right else "another key", time.time()).url).query


def requests_per_second(server: Server, seconds: int, *, query: str | None = None, run: str = "") -> float:
    """What wrk gets answered over 64 connections, each event another one; fails when one is not answered 200."""
    script = str(Path(__file__).with_name("events.lua"))
    command = [*_ON_LOAD_CORE, "wrk", "--threads=1", f"--connections={CONNECTIONS}"]
    command += [f"--duration={seconds}s", f"--script={script}", f"http://127.0.0.1:{server.port}", "--"]
    arguments = [query or signed_query(), run or f"{time.time():.6f}"]
    printed = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout
    assert query or "Non-2xx" not in printed, printed
    found = re.search(r"Requests/sec:\s+([0-9.]+)", printed)
    assert found is not None
    return float(found[1])


def steady_latency(server: Server, rate: float, seconds: float) -> dict[str, float]:
    """Latencies in milliseconds at a steady rate."""
    command = [*_ON_LOAD_CORE, sys.executable, "-m", "tests.bench.steady"]
    arguments = [str(server.port), signed_query(), str(rate), str(seconds)]
    printed = subprocess.run([*command, *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(printed)
    assert found.pop("failures") == 0
    return found


def _peak_mib(process: str) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").close()
    except urllib.request.HTTPError:
        return True
    except (URLError, ConnectionError):
        return False
    return True
