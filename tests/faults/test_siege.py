"""Sieges: connections by the thousand, while a sender's callbacks go on being answered.

The short form counts: each callback of the sender is answered 200. With FAULT_SIEGE seconds the attacks are as long as
that, it is seen that nothing is left of them, and the times that the sender saw are printed.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from tests.helpers.memory_limit import memory_limit
from tests.helpers.receiver import Process, running, wait_until
from tests.helpers.siege import Sender, client_hello, large_bodies, senders, siege

SECONDS = float(os.environ.get("FAULT_SIEGE", "0"))
SHORT = 3  # seconds of the short form
REST = 40  # seconds after which nothing is to be left of an attack
REQUEST_TIMEOUT = 10
AT_ONCE = 10**9  # connections a second
MOST_BYTES = 256 * 2**20
LIMIT_BYTES = 2 * MOST_BYTES  # over which it is killed
LARGE = 1000  # clients that send large bodies with a right signature
# How many connections, and how many a second.
ATTACKS = {
    "a burst of 1,500": (1500, AT_ONCE),
    "a burst of 4,000": (4000, AT_ONCE),
    "1,500 a second": (int(1500 * (SECONDS or SHORT)), 1500),
}
SLOW = {"header": "-H -t POST -i 1", "body": "-B -i 1 -s 9000", "read": "-X -k 5 -w 1 -y 10 -n 1 -z 5"}
Remark = Callable[[str], None]


def status(pid: int, name: str) -> int:
    """A number of bytes from the process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def memory(receiver: Process, name: str = "VmHWM") -> int:
    """The most memory that both processes ever had, in bytes; with `VmRSS` what they have now."""
    return sum(status(pid, name) for pid in (receiver.process.pid, receiver.worker))


def open_files(receiver: Process) -> int:
    """How many files the process that answers has open."""
    return len(list(Path(f"/proc/{receiver.process.pid}/fd").iterdir()))


@contextmanager
def besieged(folder: Path, *, tls: bool) -> Iterator[Process]:
    """A receiver with little memory, of which is seen that nothing is left of an attack when it is over."""
    timeout = str(REQUEST_TIMEOUT)
    with (
        memory_limit(LIMIT_BYTES) as prefix,
        running(folder, tls=tls, prefix=prefix, RECEIVER_REQUEST_TIMEOUT=timeout) as receiver,
    ):
        receiver.rows("SELECT 1")  # the database is in use
        files = open_files(receiver)
        yield receiver
        assert memory(receiver) < MOST_BYTES
        wait_until(lambda: receiver.metric("connections", "public") == 0, "the end of all connections")
        wait_until(lambda: open_files(receiver) <= files + 2, "the end of their files")
        if SECONDS:
            time.sleep(REST)
            used = receiver.processor_seconds()
            time.sleep(REST / 4)
            assert receiver.processor_seconds() - used < REST / 4 / 10  # of a core
        assert receiver.stop() == 0
        assert "Traceback" not in receiver.log


def check(receiver: Process, both: list[Sender], attack: str, remark: Remark) -> None:
    """Each callback was answered 200."""
    for sender, kind in zip(both, ("kept connection", "new connections"), strict=True):
        sender.end()
        times = ", ".join(f"{name} {sender.milliseconds(share):.0f}" for name, share in (("p50", 0.5), ("p99", 0.99)))
        line = f"{attack}, {'TLS' if receiver.tls else 'plain'}, {kind}: {dict(sender.answers)}, {times} ms"
        line += f", memory {memory(receiver) / 2**20:.0f} MiB"
        print(line)  # noqa: T201 (pytest shows it where the test fails)
        remark(line)
    for sender in both:
        assert set(sender.answers) == {"200"}


def cases(*lists: Iterable[str], short: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """All combinations; in the short form those of `short`."""
    return [case for case in product(*lists) if SECONDS or case in short]


@pytest.mark.parametrize(
    ("attack", "kind", "payload"),
    cases(
        ATTACKS,
        ["plain", "TLS"],
        ["nothing", "ClientHello"],
        short={("a burst of 4,000", "plain", "nothing"), ("1,500 a second", "TLS", "ClientHello")},
    ),
)
def test_connections_by_the_thousand(tmp_path: Path, attack: str, kind: str, payload: str, remark: Remark) -> None:
    """Connections from as many addresses, with nothing or half a handshake, cost no callback of a sender."""
    raw = client_hello() if payload == "ClientHello" else b""
    with besieged(tmp_path, tls=kind == "TLS") as receiver, senders(receiver) as both:
        with siege(receiver, *ATTACKS[attack], raw) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"made\n"
            counts = [len(sender.answered) for sender in both]
            enough = time.monotonic() + SECONDS
            wait_until(
                lambda: (
                    all(len(sender.answered) > count + 20 for sender, count in zip(both, counts, strict=True))
                    and time.monotonic() > enough
                ),
                "callbacks under attack",
                SECONDS + 60,
            )
        check(receiver, both, f"{attack} with {payload}", remark)


@pytest.mark.parametrize("mode", SLOW if SECONDS else ["body"])
def test_slow_clients(tmp_path: Path, mode: str, remark: Remark) -> None:
    """2,000 slow connections, in the body's mode with a right signature, cost no callback of a sender."""
    with besieged(tmp_path, tls=False) as receiver, senders(receiver) as both:
        url = f"http://127.0.0.1:{receiver.port}{receiver.target()}"
        command = f"slowhttptest -c 2000 -r 1000 -l 120 {SLOW[mode]} -u".split()
        with subprocess.Popen([*command, url], stdout=subprocess.DEVNULL) as attacker:
            enough = time.monotonic() + (SECONDS or SHORT)
            wait_until(lambda: time.monotonic() > enough, "the end of the attack", SECONDS + 60)
            attacker.terminate()
        check(receiver, both, f"slowhttptest {mode}", remark)


def test_the_limit_kills() -> None:
    """A process for which the limit is too little ends."""
    with memory_limit(LIMIT_BYTES) as prefix:
        for size, is_killed in ((LIMIT_BYTES // 2, False), (LIMIT_BYTES, True)):
            command = [*prefix, sys.executable, "-c", f"b'x' * {size}"]
            assert bool(subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode) == is_killed


@pytest.mark.parametrize(
    ("kind", "age", "framing"),
    cases(
        ["plain", "TLS"],
        ["fresh", "stale"],
        ["declared", "chunked"],
        short={("TLS", "fresh", "chunked"), ("plain", "stale", "declared")},
    ),
)
def test_large_bodies(tmp_path: Path, kind: str, age: str, framing: str, remark: Remark) -> None:
    """Clients with one signature, or none, who send all of 1 MiB but its end, cost neither memory nor callbacks."""
    with besieged(tmp_path, tls=kind == "TLS") as receiver, senders(receiver) as both:
        target = receiver.target(time.time() - 3600 * (age == "stale"))
        clients = LARGE if SECONDS or kind == "plain" else LARGE // 3
        targets = [target] * clients + ["/callbacks/metastudio"] * (clients // 5)
        random.shuffle(targets)
        answers = large_bodies(receiver, targets, is_chunked=framing == "chunked")
        assert answers["200"] == 0
        check(receiver, both, f"large bodies, {age}, {framing}: {dict(answers)}", remark)
        if age == "stale":  # which leaves room for callbacks
            assert receiver.metric("callbacks_rejected_total", "default", "not_durable") == 0
