"""Sieges of the shipped proxies by many addresses: a sender's callbacks go on being accepted through them."""

from __future__ import annotations

import json
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPException

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
}
# All of them in `make faults`.
CHOSEN = list(SIEGES) if os.environ.get("FAULT_SIEGE") else list(SIEGES)[:1]
SECONDS = 4  # from when all are connected
ANSWERS = 20
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
        yield proxy
        assert "Traceback" not in receiver.log
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


@pytest.mark.parametrize("siege", CHOSEN)
def test_the_sender_is_served(proxy: Proxy, siege: str) -> None:
    """Whoever besieges the proxy, each callback is accepted, over a kept connection and over new ones."""
    kind, connections, rate = SIEGES[siege]
    target = proxy.receiver.target(time.time() - 10_000)
    senders = [Sender(proxy, keeps=keeps) for keeps in (True, False)]
    answers: Counter[int | str] = Counter()
    with besieged(kind, proxy.port, connections=connections, rate=rate, seconds=SECONDS, target=target) as attacker:
        while attacker.poll() is None:
            answers.update(sender.post() for sender in senders)
        assert attacker.stdout is not None
        counts = json.loads(attacker.stdout.read())
    assert counts["connected"] >= connections
    assert answers.total() >= ANSWERS
    assert answers[200] >= 0.999 * answers.total(), answers
    for sender in senders:
        sender.close()
    slowest = [sorted(sender.seconds)[len(sender.seconds) * 99 // 100] for sender in senders]
    logger.info("%s: %s; p99 kept, new: %s s; answers %s", siege, counts, slowest, dict(answers))  # for people: no test
    # What the siege held is given back.
    wait_until(lambda: proxy.receiver.metric("connections", "public") == 0, "the end of its connections")
