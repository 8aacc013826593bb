"""Processes for the benchmarks: servers, and what sends to them."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

from receiver.protocol.signature import sign
from tests.helpers.authority import Authority
from tests.helpers.receiver import KEY, free_port, wait_until

ROOT = Path(__file__).parents[2]
URL = "https://localhost/callbacks/metastudio"
CONNECTIONS = 64
_LONGEST_START = 60  # seconds, of a load on a busy machine


class Server:
    """A process that serves callbacks below `url`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, operations_port: int = 0) -> None:
        self.process = process
        self.url = url
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


class Machine:
    """Starts servers and loads: on all cores as users run them, or each server on one core and each load on another."""

    def __init__(self, *, pinned: bool = False) -> None:
        self.pinned = pinned
        cores = sorted(os.sched_getaffinity(0))
        self._server = ["taskset", "--cpu-list", str(cores[0])] if pinned else []
        self._load = ["taskset", "--cpu-list", str(cores[-1])] if pinned else []

    @contextmanager
    def receiving(self, folder: Path, database_url: str, *, with_tls: bool = False) -> Iterator[Server]:
        """Run the receiver."""
        port, operations_port = free_port(), free_port()
        environ = {
            "RECEIVER_LISTEN": f"127.0.0.1:{port}",
            "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{operations_port}",
            "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL,
            "RECEIVER_KEY": KEY,
            "RECEIVER_DATABASE_URL": database_url,
        }
        if with_tls:
            certificate, key = _certificate(folder)
            environ |= {"RECEIVER_TLS_CERTIFICATE": str(certificate), "RECEIVER_TLS_KEY": str(key)}
        url = f"{'https' if with_tls else 'http'}://127.0.0.1:{port}"
        with self._serving(["receiver", "serve"], url, folder, operations_port, **environ) as server:
            yield server

    @contextmanager
    def comparing(self, folder: Path, name: str, *database_url: str, with_tls: bool = False) -> Iterator[Server]:
        """Run one of tests.bench.servers."""
        port = free_port()
        tls = [f"--tls={path}" for path in _certificate(folder)] if with_tls else []
        url = f"{'https' if with_tls else 'http'}://127.0.0.1:{port}"
        with self._serving(["tests.bench.servers", name, str(port), *tls, *database_url], url, folder) as server:
            yield server

    @contextmanager
    def _serving(
        self, command: list[str], url: str, folder: Path, operations_port: int = 0, **environ: str
    ) -> Iterator[Server]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        with (folder / "server.log").open("ab") as log:
            started = [*self._server, sys.executable, "-m", *command]
            process = subprocess.Popen(started, cwd=folder, env=environ, stdout=log, stderr=log)
        try:
            wait_until(lambda: _answers(url) or process.poll() is not None, "a server")
            assert process.poll() is None, (folder / "server.log").read_text()
            yield Server(process, url, operations_port)
        finally:
            process.terminate()
            process.wait(60)

    def requests_per_second(self, server: Server, seconds: int) -> float:
        """What wrk gets answered over 64 connections, each event another one; fails when one is not answered 200."""
        printed, rate = self._wrk(server, seconds, KEY)
        assert "Non-2xx" not in printed, printed
        return rate

    def rejections_per_second(self, server: Server, seconds: int) -> float:
        """The same with signatures by another key, none of which may be answered 200."""
        printed, rate = self._wrk(server, seconds, "another key")
        answered = re.search(r"(\d+) requests in", printed)
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
        assert answered is not None, printed
        assert refused is not None, printed
        assert answered[1] == refused[1], printed
        return rate

    def _wrk(self, server: Server, seconds: int, key: str) -> tuple[str, float]:
        script = str(Path(__file__).with_name("events.lua"))
        now = time.time()
        queries = [signed_query(key, int(now) + second) for second in range(seconds + _LONGEST_START)]
        command = [*self._load, "wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s"]
        command += [f"--script={script}", server.url, "--", f"{now:.6f}", *queries]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = re.search(r"Requests/sec:\s+([0-9.]+)", printed)
        assert found is not None, printed
        return printed, float(found[1])

    def steady_latency(self, server: Server, rate: float, seconds: float) -> dict[str, float]:
        """Latencies in milliseconds at a steady rate over plain HTTP."""
        port = str(urlsplit(server.url).port)
        command = [*self._load, sys.executable, "-m", "tests.bench.steady", port, str(rate), str(seconds)]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        found: dict[str, float] = json.loads(printed)
        assert found.pop("failures") == 0
        return found


@cache
def signed_query(key: str, second: int) -> str:
    """The query of a callback that is signed at this POSIX second."""
    return urlsplit(sign(URL, key, second).url).query


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    Authority().issue(certificate, key)
    return certificate, key


def _peak_mib(process: str) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _answers(url: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        urllib.request.urlopen(f"{url}/healthz", context=context).close()
    except urllib.request.HTTPError:
        return True
    except (URLError, ConnectionError):
        return False
    return True
