"""A load at a steady rate, in a process of its own: `python -m tests.bench.steady PORT RATE SECONDS`.

Each request has its time by the clock, and its latency is counted from that time, so that a server that stalls is not
given a pause (what is known as coordinated omission). Prints p50, p99 and p99.9 in milliseconds, and the failures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from tests.bench.machine import signed_query
from tests.helpers.receiver import KEY

_CONNECTIONS = 32
_BODY = (
    '{"event_type":"SHOOT_SCRIPT_SWITCH","message":"{\\"room_id\\":\\"r\\",\\"job_id\\":\\"steady\\",'
    '\\"scene_script_name\\":\\"商品1\\",\\"shoot_script_sequence_no\\":\\"1\\",\\"shoot_script_title\\":\\"%s\\"}"}'
)


async def run(port: int, rate: float, seconds: float) -> dict[str, float]:
    """Send at `rate` for `seconds`; the first tenth is warm-up and not counted."""
    latencies: list[float] = []
    failures = 0
    total = int(rate * seconds)
    numbers = iter(range(total))
    began = time.perf_counter() + 0.2

    async def work() -> None:
        nonlocal failures
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            due = began + number / rate
            await asyncio.sleep(due - time.perf_counter())
            body = (_BODY % f"{began}-{number}").encode()
            query = signed_query(KEY, int(time.time()))
            head = (
                f"POST /callbacks/metastudio?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b'"accepted"}')
            if number > total / 10:
                latencies.append(time.perf_counter() - due)
            failures += not answer.startswith(b"HTTP/1.1 200")
        writer.close()

    await asyncio.gather(*(work() for _ in range(_CONNECTIONS)))
    latencies.sort()
    marks = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {name: 1000 * latencies[int(mark * len(latencies))] for name, mark in marks.items()} | {"failures": failures}


if __name__ == "__main__":
    _port, _rate, _seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(run(int(_port), float(_rate), float(_seconds)))))  # noqa: T201
