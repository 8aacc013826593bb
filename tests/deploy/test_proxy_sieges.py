"""Sieges of the shipped proxies by many addresses: a sender's callbacks go on being accepted through them."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.proxies import CLIENT, SAMPLE, Proxy, caddy, nginx
from tests.helpers.proxy_siege import besieged
from tests.helpers.receiver import running, wait_until

logger = logging.getLogger(__name__)

# Connections, and requests or new connections a second.
SIEGES = {
    "requests with a stale signature": ("requests", 200, 1600),
    "new connections that say nothing": ("silence", 1500, 1500),
    "handshakes that are not finished": ("handshakes", 1500, 1500),
    "bodies that trickle, with a stale signature": ("bodies", 2000, 1500),
    "a burst that says nothing": ("silence", 4000, 100_000),
    "new connections all the time": ("passing", 1500, 1500),
}
LONG = int(os.environ.get("FAULT_SIEGE", "0"))  # seconds
# 2,000 slow connections of one address, by slowhttptest's options.
SLOW = {
    "slow headers": "-H -t POST -i 1",
    "slow bodies": "-B -i 1 -s 9000",
    "slow reading": "-X -k 5 -w 1 -y 10 -n 1 -z 5",
}
# All of them in `make faults`.
CHOSEN = [*SIEGES, *SLOW] if LONG else list(SIEGES)[:1]
SECONDS = LONG or 4  # from when all are connected
REST = 40  # seconds after which nothing is to be left of a long one
ANSWERS = 20
MOST_KIB = 256 * 1024
FILES = 20_000  # that connections of the siege need here


@pytest.fixture(scope="module", params={"nginx": nginx, "caddy": caddy}.items(), ids=lambda one: one[0])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("sieges")
    (folder / "proxy").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    with (
        running(folder, tls=False, RECEIVER_TRUSTED_PROXIES="127.0.0.1") as receiver,
        request.param[1](folder / "proxy", receiver) as proxy,
    ):
        proxy.post(receiver.target())
        before = open_files(proxy)
        yield proxy
        if LONG:
            time.sleep(REST)
            check_rest(proxy, before)
        assert "Traceback" not in receiver.log
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def processes(proxy: Proxy) -> list[int]:
    """The proxy and the receiver."""
    assert proxy.process is not None
    return [proxy.process.pid, proxy.receiver.process.pid]


def open_files(proxy: Proxy) -> list[int]:
    """How many files each process has open."""
    return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes(proxy)]


def processor_seconds(proxy: Proxy) -> list[float]:
    """What each process has used of a processor."""
    return [sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])) / 100 for pid in processes(proxy)]


def check_rest(proxy: Proxy, files: list[int]) -> None:
    """Nothing is left of a siege: descriptors, memory and processor are what they were."""
    assert all(now <= before + 5 for now, before in zip(open_files(proxy), files, strict=True))
    status = Path(f"/proc/{proxy.receiver.process.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < MOST_KIB
    used = processor_seconds(proxy)
    time.sleep(REST / 4)
    assert all(now - before < REST / 40 for now, before in zip(processor_seconds(proxy), used, strict=True))


class Sender:
    """MetaStudio: posts over a connection that it keeps, or over a new one each time."""

    def __init__(self, proxy: Proxy, *, keeps: bool) -> None:
        self._proxy = proxy
        self._keeps = keeps
        self._connection = proxy.connection(CLIENT)
        self.seconds: list[float] = []

    def post(self) -> int | str:
        """The status, or what went wrong. A kept connection that was closed meanwhile is made anew, as clients do."""
        began = time.monotonic()
        try:
            answer: int | str = self._post()
        except (OSError, HTTPException) as error:
            self._connection.close()
            answer = repr(error)
            if self._keeps:
                answer = self._post()
        self.seconds.append(time.monotonic() - began)
        if not self._keeps:
            self._connection.close()
        return answer

    def _post(self) -> int:
        self._connection.request("POST", self._proxy.receiver.target(), SAMPLE)
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


@contextmanager
def attacked(proxy: Proxy, siege: str) -> Iterator[subprocess.Popen[Any]]:
    """The siege, which ends by itself."""
    target = proxy.receiver.target(time.time() - 10_000)
    if siege in SLOW:
        url = f"https://localhost:{proxy.port}{target}"
        command = ["slowhttptest", "-c", "2000", "-r", "1000", "-l", str(SECONDS), *SLOW[siege].split(), "-u", url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            yield process
        return
    kind, connections, rate = SIEGES[siege]
    with besieged(kind, proxy.port, connections=connections, rate=rate, seconds=SECONDS, target=target) as process:
        yield process
        assert process.stdout is not None
        counts = json.loads(process.stdout.read())
    logger.info("%s: %s", siege, counts)  # for people: no test
    assert counts["connected"] >= connections


@pytest.mark.parametrize("siege", CHOSEN)
def test_the_sender_is_served(proxy: Proxy, siege: str) -> None:
    """Whoever besieges the proxy, each callback is accepted, over a kept connection and over new ones."""
    senders = [Sender(proxy, keeps=keeps) for keeps in (True, False)]
    answers: Counter[int | str] = Counter()
    with attacked(proxy, siege) as process:
        while process.poll() is None:
            answers.update(sender.post() for sender in senders)
    for sender in senders:
        sender.close()
    slowest = [sorted(sender.seconds)[len(sender.seconds) * 99 // 100] for sender in senders]
    logger.info("%s: p99 kept, new: %s s; answers %s", siege, slowest, dict(answers))  # for people: no test
    assert answers.total() >= ANSWERS
    assert answers[200] >= 0.999 * answers.total(), answers
    # What the siege held is given back.
    wait_until(lambda: proxy.receiver.metric("connections", "public") == 0, "the end of its connections")
