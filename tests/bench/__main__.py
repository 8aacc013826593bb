"""`python -m tests.bench [NAME …]`: one table, from one run on one machine, each figure beside its baseline.

Names are throughput, latency, start_up and rows; all without one. Throughput and latency are measured twice: as users
run it, on all cores, and with the server pinned to one core and the load to another. BENCH_SECONDS is how long each
load lasts, BENCH_ROUNDS how often it is repeated; BENCH_ROWS how many stored events ingest and queries are measured at.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from receiver.database.database import Database
from tests.bench import history
from tests.bench.machine import Machine, Server
from tests.bench.table import Table
from tests.helpers.postgres import PrivatePostgreSQL, new_database

SECONDS = int(os.environ.get("BENCH_SECONDS", "8"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))  # of each server in turn: a change in the machine's speed meets all
ROWS = int(os.environ.get("BENCH_ROWS", "10000000"))
FEW = 100_000  # events that ingest and queries are compared at
RATE = 1000.0
DATABASES = ("SQLite", "PostgreSQL")
ANSWERED = {"SQLite": "≥ 0.64", "PostgreSQL": "≥ 0.58"}
STORED = {"SQLite": "≥ 0.60", "PostgreSQL": "≥ 0.54"}
OTHER_QUERIES = {"status page": "≤ 100 ms", "report of a month": ""}  # which reads more where there is more in a month
Figures = dict[str, list[float]]  # the figure of each round, by what is measured


class Bench:
    """What all measurements share: a folder, a PostgreSQL that syncs as users' do, and the table."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._count = 0
        self._stack = stack
        self.table = Table()
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postgresql-")))
        self.postgresql = PrivatePostgreSQL(home, fsync=True)
        self.postgresql.start()
        stack.callback(self.postgresql.stop)

    def folder(self) -> Path:
        """A new empty folder."""
        self._count += 1
        path = self._folder / str(self._count)
        path.mkdir()
        return path

    def database(self, kind: str, *, migrated: bool = True) -> str:
        """The URL of a new database."""
        if kind == "SQLite":
            url = f"sqlite:///{self.folder()}/receiver.db"
        else:
            url = self._stack.enter_context(new_database(self.postgresql.url))
        if migrated:
            with closing(Database(url)) as database:
                database.migrate()
        return url


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def spread(values: list[float], unit: str = "/s", digits: int = 0) -> str:
    """The median, and the range."""
    middle, least, most = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle}{unit} ({least} to {most})"


def throughput(bench: Bench) -> None:
    """Answered and stored events a second of each server, in turn."""
    for machine in (Machine(), Machine(pinned=True)):
        for scheme in ("HTTP", "TLS"):
            measure_throughput(bench, machine, scheme)


def measure_throughput(bench: Bench, machine: Machine, scheme: str) -> None:
    """The same over plain HTTP or TLS, with kept connections, on a machine."""
    with_tls, names = scheme == "TLS", {kind: f"receiver, {kind}, {scheme}" for kind in DATABASES}
    ceiling = f"ceiling, {scheme}"
    with ExitStack() as stack:
        servers = {ceiling: stack.enter_context(machine.comparing(bench.folder(), "ceiling", with_tls=with_tls))}
        for kind, name in names.items():
            url = bench.database(kind)
            servers[name] = stack.enter_context(machine.receiving(bench.folder(), url, with_tls=with_tls))
        if not with_tls:
            for kind in DATABASES:
                url = bench.database(kind, migrated=False)
                server = stack.enter_context(machine.comparing(bench.folder(), "tutorial", url))
                servers[f"tutorial, {kind}, {scheme}"] = server
        answered, stored = load_in_turn(servers, machine)
        wrong = [machine.rejections_per_second(servers[names["SQLite"]], SECONDS) for _ in range(ROUNDS)]
        peak = max(servers[name].peak_mib for name in names.values())
    best = median(answered[ceiling])
    add = bench.table.adder(machine)
    for name, rates in answered.items():
        target = next((ANSWERED[kind] for kind, one in names.items() if one == name and not with_tls), "")
        add(f"{name}: answered", spread(rates), median(rates) / best, "ceiling", target)
    for kind, name in names.items():
        target = "" if with_tls else STORED[kind]
        add(f"{name}: stored", spread(stored[name]), median(stored[name]) / best, "ceiling", target)
    accepted = median(answered[names["SQLite"]])
    add(f"wrong signatures answered 401, {scheme}", spread(wrong), median(wrong) / accepted, "accepted", "≥ 1")
    add(f"memory of both processes at its peak, {scheme}", f"{peak:.0f} MiB", peak / 160, "160 MiB", "≤ 1")


def load_in_turn(servers: dict[str, Server], machine: Machine) -> tuple[Figures, Figures]:
    """Events a second that each server answered, and that it had stored by the time that nothing waited any more."""
    answered: Figures = {name: [] for name in servers}
    stored: Figures = {name: [] for name in servers}
    for _ in range(ROUNDS):
        for name, server in servers.items():
            began = time.perf_counter()
            rate = machine.requests_per_second(server, SECONDS)
            answered[name].append(rate)
            if name.startswith("receiver"):
                server.wait_until_drained()
                stored[name].append(rate * SECONDS / (time.perf_counter() - began))
    return answered, stored


def latency(bench: Bench) -> None:
    """Latencies at a steady rate, whatever state the database is in; the states in turn."""
    for machine in (Machine(), Machine(pinned=True)):
        with ExitStack() as stack:
            ceiling = stack.enter_context(machine.comparing(bench.folder(), "ceiling"))
            sqlite = stack.enter_context(machine.receiving(bench.folder(), bench.database("SQLite")))
            postgresql = stack.enter_context(machine.receiving(bench.folder(), bench.database("PostgreSQL")))
            found: dict[str, Figures] = {}
            for _ in range(ROUNDS):
                for name, state in (("ceiling", "up"), ("receiver, SQLite", "up"), *POSTGRESQL.items()):
                    server = {"ceiling": ceiling, "receiver, SQLite": sqlite}.get(name, postgresql)
                    with outage(bench.postgresql, state):
                        marks = machine.steady_latency(server, RATE, SECONDS)
                    if server is not ceiling:
                        server.wait_until_drained()
                    for mark, milliseconds in marks.items():
                        found.setdefault(name, {}).setdefault(mark, []).append(milliseconds)
        add = bench.table.adder(machine)
        for name, marks_found in found.items():
            for mark, values in marks_found.items():
                ratio = median(values) / median(found["ceiling"][mark])
                target = "≤ 2.5" if mark == "p99" and name != "ceiling" else ""
                add(f"{name}: {mark} at {RATE:,.0f}/s", spread(values, " ms", 2), ratio, "ceiling", target)


POSTGRESQL = {f"receiver, PostgreSQL {state}": state for state in ("up", "frozen", "stopped")}


@contextmanager
def outage(postgresql: PrivatePostgreSQL, state: str) -> Iterator[None]:
    """Keep the database up, frozen or stopped until the end of the block."""
    if state == "stopped":
        with postgresql.stopped():
            yield
        return
    if state == "frozen":
        postgresql.freeze()
    yield
    if state == "frozen":
        postgresql.thaw()


def start_up(bench: Bench) -> None:
    """From starting the process to its first answer, on a new folder and again."""
    folder, found = bench.folder(), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with Machine().receiving(folder, "sqlite:///var/receiver.db"):
            found.append(time.perf_counter() - began)
    add = bench.table.adder(Machine())
    add("start to first answer", spread(found, " s", 2), median(found) / 0.8, "0.8 s", "≤ 1")


def rows(bench: Bench) -> None:
    """What ingest and people's queries cost with a hundred times as many events in the database."""
    machine = Machine()
    add = bench.table.adder(machine)
    for kind in DATABASES:
        url = bench.database(kind)
        history.fill(url, 0, FEW)
        few, few_a_second = history.measure(url, FEW), ingest(bench, machine, url)
        history.forget_what_is_newer(url)
        history.fill(url, FEW, ROWS)
        at = f"at {ROWS / 1e6:g} million events"
        for name, milliseconds in history.measure(url, ROWS).items():
            ratio, of = milliseconds / few[name], f"{few[name]:.2f} ms at {FEW / 1e6:g} million"
            add(f"{kind}: {name}, {at}", f"{milliseconds:.2f} ms", ratio, of, OTHER_QUERIES.get(name, "≤ 2, or 20 ms"))
        a_second, of = ingest(bench, machine, url), f"{few_a_second:,.0f}/s at {FEW / 1e6:g} million"
        add(f"{kind}: stored, {at}", f"{a_second:,.0f}/s", a_second / few_a_second, of, "≥ 0.8")
        if kind == "SQLite":
            size = Path(url.removeprefix("sqlite:///")).stat().st_size
            add(f"{kind}: stored bytes an event", f"{size / ROWS:.0f}")


def ingest(bench: Bench, machine: Machine, url: str) -> float:
    """Events a second from the socket to the row: the median."""
    with machine.receiving(bench.folder(), url) as server:
        return median(load_in_turn({"receiver": server}, machine)[1]["receiver"])


def main(*names: str) -> None:
    """Measure the parts of these names, or all, and print."""
    parts = {part.__name__: part for part in (throughput, latency, start_up, rows)}
    unknown = [name for name in names if name not in parts]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(parts)}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bench = Bench(folder, stack)
        for name in names or parts:
            parts[name](bench)
    cores = f"{len(os.sched_getaffinity(0))} cores"
    title = f"{datetime.now(UTC):%Y-%m-%d}, {cores}, Python {platform.python_version()}, uvicorn {version('uvicorn')}"
    print(title, "", bench.table, sep="\n")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
