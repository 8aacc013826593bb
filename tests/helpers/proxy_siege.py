"""Clients that mean harm to what listens on a port of this machine, in a process of their own, for some seconds.

Run as `python -m tests.helpers.proxy_siege KIND PORT CONNECTIONS RATE SECONDS [TARGET]`; each connection comes from
another address of the loopback network. It ends by itself, and prints how many connections and answers there were.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# The beginning of a TLS ClientHello, whose rest does not come.
_HALF_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(20)
_MOST_SECONDS = 60
# One for all: to make one takes longer than a handshake.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_TLS.check_hostname, _TLS.verify_mode = False, ssl.CERT_NONE


@contextmanager
def besieged(  # noqa: PLR0913 (each is what makes a siege)
    kind: str, port: int, *, connections: int, rate: int, seconds: int, target: str = "/"
) -> Iterator[subprocess.Popen[str]]:
    """A siege for as long as the block, at most `seconds`."""
    command = [
        sys.executable,
        "-m",
        "tests.helpers.proxy_siege",
        kind,
        *map(str, (port, connections, rate, seconds)),
        target,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


async def _open(port: int, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    source = f"127.{random.randrange(1, 250)}.{random.randrange(250)}.{random.randrange(1, 250)}"
    name = "localhost" if tls else None
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name, local_addr=(source, 0))


async def _attack(kind: str, port: int, target: str, pause: float, counts: Counter[str]) -> None:
    """One client: it connects, and does the same again and again until it is thrown out."""
    reader, writer = await _open(port, _TLS if kind in ("requests", "bodies") else None)
    counts["connected"] += 1
    try:
        if kind == "handshakes":
            writer.write(_HALF_HELLO)
        if kind == "bodies":
            writer.write(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n".encode())
        while kind == "requests":
            writer.write(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            counts[head.split(maxsplit=2)[1].decode()] += 1
            if length := head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]:
                await reader.readexactly(int(length))
            if b"connection: close" in head.lower():
                return
            await asyncio.sleep(pause)
        while kind == "bodies" and not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1 if kind == "passing" else None):
                await reader.read()
    finally:
        counts["ended"] += 1
        writer.close()


async def _siege(kind: str, target: str, port: int, numbers: tuple[int, int, int]) -> None:
    """So many connections at once, made anew when they end, with so many requests or new connections a second in all.

    It lasts for so many seconds once all have been connected.
    """
    connections, rate, seconds = numbers
    counts: Counter[str] = Counter()
    pause = connections / rate

    async def again() -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await _attack(kind, port, target, pause, counts)
            await asyncio.sleep(0 if kind == "passing" else max(pause, 1))

    tasks = []
    for _ in range(connections):
        tasks.append(asyncio.create_task(again()))
        await asyncio.sleep(1 / rate)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MOST_SECONDS):
            while counts["connected"] < connections:  # noqa: ASYNC110 (it is only counted)
                await asyncio.sleep(0.05)
    await asyncio.sleep(min(seconds, _MOST_SECONDS))
    print(json.dumps(counts), flush=True)  # noqa: T201 (what it is run for)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    _kind, _port, *_numbers, _target = sys.argv[1:]
    _connections, _rate, _seconds = map(int, _numbers)
    asyncio.run(_siege(_kind, _target, int(_port), (_connections, _rate, _seconds)))
