"""`python -m tests.bench`: one table, from one run on one machine, each figure beside its baseline.

BENCH_SECONDS is how long each load lasts; BENCH_ROWS how many stored events the growth and the
history's queries are measured up to. What is run is named by arguments, or is all of it: throughput, latency, start_up,
growth, history.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, text

from receiver.database.database import Database
from tests.bench import history as livestreams
from tests.bench.machine import PINNED, Server, comparing, receiving, requests_per_second, signed_query, steady_latency
from tests.helpers.postgres import PrivatePostgreSQL, new_database

SECONDS = int(os.environ.get("BENCH_SECONDS", "8"))
ROWS = int(os.environ.get("BENCH_ROWS", "10000000"))
RATE = 1000.0
_FEW = 100_000  # events that the history's queries are compared at
ROUNDS = 5  # of each server in turn, so that a change in the machine's speed meets all of them


class Report:
    """The table, printed as it grows and once more at the end."""

    def __init__(self) -> None:
        self.table = Table("figure", "value", "ratio", "of", "target", box=None, pad_edge=False)

    def add(self, figure: str, value: str, ratio: float | None = None, of: str = "", target: str = "") -> None:
        """One row."""
        row = (figure, value, "" if ratio is None else f"{ratio:.2f}", of, target)
        sys.stderr.write("  ".join(filter(None, row)) + "\n")
        self.table.add_row(*row)


class Bench:
    """What all measurements share."""

    def __init__(self, folder: Path, stack: ExitStack, report: Report) -> None:
        self._folder = folder
        self._count = 0
        self._stack = stack
        self.report = report
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

    def database(self, *, migrated: bool = True) -> str:
        """A new PostgreSQL database."""
        url = self._stack.enter_context(new_database(self.postgresql.url))
        if migrated:
            with closing(Database(url)) as database:
                database.migrate()
        return url


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def spread(rates: list[float]) -> str:
    """The median a second, and the range."""
    return f"{median(rates):,.0f}/s ({min(rates):,.0f} to {max(rates):,.0f})"


def throughput(bench: Bench) -> None:
    """Acknowledged and end-to-end events a second of each server, in turn."""
    tutorial_sqlite = f"sqlite:///{bench.folder()}/tutorial.db"
    tutorial_postgresql, receiver_postgresql = bench.database(migrated=False), bench.database()
    with ExitStack() as stack:
        servers: dict[str, Server] = {
            "ceiling": stack.enter_context(comparing(bench.folder(), "ceiling")),
            "receiver, SQLite": stack.enter_context(receiving(bench.folder())),
            "receiver, PostgreSQL": stack.enter_context(receiving(bench.folder(), receiver_postgresql)),
            "tutorial, SQLite": stack.enter_context(comparing(bench.folder(), "tutorial", tutorial_sqlite)),
            "tutorial, PostgreSQL": stack.enter_context(comparing(bench.folder(), "tutorial", tutorial_postgresql)),
        }
        rates: dict[str, list[float]] = {name: [] for name in servers}
        end_to_end: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, server in servers.items():
                began = time.perf_counter()
                rate = requests_per_second(server, SECONDS)
                rates[name].append(rate)
                if name.startswith("receiver"):
                    server.wait_until_drained()
                end_to_end[name].append(rate * SECONDS / (time.perf_counter() - began))
        wrong = signed_query(right=False)
        server = servers["receiver, SQLite"]
        rejected = median([requests_per_second(server, SECONDS, query=wrong) for _ in range(ROUNDS)])
        peak = max(servers[name].peak_mib for name in ("receiver, SQLite", "receiver, PostgreSQL"))
    ceiling = median(rates["ceiling"])
    for name, found in rates.items():
        target = {"receiver, SQLite": "≥ 0.64", "receiver, PostgreSQL": "≥ 0.58"}.get(name, "")
        bench.report.add(f"{name}: answered", spread(found), median(found) / ceiling, "ceiling", target)
    for name in ("receiver, SQLite", "receiver, PostgreSQL"):
        stored = median(end_to_end[name])
        bench.report.add(
            f"{name}: socket to row",
            spread(end_to_end[name]),
            stored / ceiling,
            "ceiling",
            "≥ 0.60" if "SQLite" in name else "≥ 0.54",
        )
    receiver, tutorial = median(rates["receiver, PostgreSQL"]), median(rates["tutorial, PostgreSQL"])
    bench.report.add("receiver, PostgreSQL: answered", f"{receiver:,.0f}/s", receiver / tutorial, "tutorial")
    accepted = median(rates["receiver, SQLite"])
    bench.report.add("wrong signatures answered 401", f"{rejected:,.0f}/s", rejected / accepted, "accepted", "≥ 1")
    bench.report.add("memory of both processes at its peak", f"{peak:.0f} MiB", peak / 160, "160 MiB", "≤ 1")


def latency(bench: Bench) -> None:
    """Latencies at a steady rate, whatever state the database is in."""
    with comparing(bench.folder(), "ceiling") as server:
        baseline = steady_latency(server, RATE, SECONDS)
    report(bench, "ceiling", baseline, baseline)
    with receiving(bench.folder()) as server:
        report(bench, "receiver, SQLite", steady_latency(server, RATE, SECONDS), baseline)
    with receiving(bench.folder(), bench.database()) as server:
        report(bench, "receiver, PostgreSQL", steady_latency(server, RATE, SECONDS), baseline)
        bench.postgresql.freeze()
        report(bench, "receiver, PostgreSQL frozen", steady_latency(server, RATE, SECONDS), baseline)
        bench.postgresql.thaw()
        with bench.postgresql.stopped():
            report(bench, "receiver, PostgreSQL stopped", steady_latency(server, RATE, SECONDS), baseline)
        server.wait_until_drained()


def report(bench: Bench, name: str, found: dict[str, float], baseline: dict[str, float]) -> None:
    """One row for each mark."""
    for mark, value in found.items():
        target = "≤ 2.5" if mark == "p99" and name != "ceiling" else ""
        row = f"{name}: {mark} at {RATE:,.0f}/s"
        bench.report.add(row, f"{value:.2f} ms", value / baseline[mark], "ceiling", target)


def start_up(bench: Bench) -> None:
    """From starting the process to its first answer, on a new folder and again."""
    folder = bench.folder()
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with receiving(folder):
            found.append(time.perf_counter() - began)
    bench.report.add("start to first answer", f"{median(found):.2f} s", median(found) / 0.8, "0.8 s", "≤ 1")


def growth(bench: Bench) -> None:
    """What ingest and queries cost with more and more events in the database."""
    sizes = [size for size in (100_000, 1_000_000, 10_000_000) if size <= ROWS]
    for kind in ("SQLite", "PostgreSQL"):
        folder = bench.folder()
        url = f"sqlite:///{folder}/receiver.db" if kind == "SQLite" else bench.database()
        if kind == "SQLite":
            with closing(Database(url)) as database:
                database.migrate()
        baseline = None
        stored = 0
        for size in sizes:
            fill(url, stored, size)
            stored = size
            with receiving(bench.folder(), url) as server:
                began = time.perf_counter()
                rate = requests_per_second(server, SECONDS)
                server.wait_until_drained()
                rate = rate * SECONDS / (time.perf_counter() - began)
            baseline = baseline or rate
            name = f"{kind}: socket to row at {size / 1e6:g} million rows"
            bench.report.add(name, f"{rate:,.0f}/s", rate / baseline, "0.1 million", "≥ 0.8")
        if kind == "SQLite":
            with closing(sqlite3.connect(folder / "receiver.db")) as connection:
                (rows,) = connection.execute("SELECT count(*) FROM events").fetchone()
            size_of_row = (folder / "receiver.db").stat().st_size / rows
            bench.report.add("SQLite: stored bytes an event", f"{size_of_row:.0f}")


def history(bench: Bench) -> None:
    """What people's queries cost with a hundred times as many events in the database."""
    for kind in ("SQLite", "PostgreSQL"):
        url = f"sqlite:///{bench.folder()}/receiver.db" if kind == "SQLite" else bench.database()
        with closing(Database(url)) as database:
            database.migrate()
        livestreams.fill(url, 0, _FEW)
        few = livestreams.measure(url)
        livestreams.fill(url, _FEW, ROWS)
        for name, milliseconds in livestreams.measure(url).items():
            row = f"{kind}: {name} at {ROWS / 1e6:g} million rows"
            target = "≤ 2" if name != livestreams.BY_STATE else ""
            bench.report.add(row, f"{milliseconds:.2f} ms", milliseconds / few[name], f"{_FEW / 1e6:g} million", target)


def fill(url: str, first: int, last: int) -> None:
    """Put made-up events into the database, from number `first` to below `last`, in order of time."""
    body = '{"event_type":"SHOOT_SCRIPT_SWITCH","message":"{…}"}' + " " * 250
    ids = "'default', 'SHOOT_SCRIPT_SWITCH', 'room', 'job-' || (n / 100)"
    values = ids + ", {time}, {time}, {digest}, '商品1', n % 9, '段落2', :body"
    columns = (
        "endpoint, event_type, room_id, job_id, sent_at, received_at, digest,"
        " scene_script_name, shoot_script_sequence_no, shoot_script_title, body"
    )
    if url.startswith("sqlite"):
        time_of = "strftime('%Y-%m-%d %H:%M:%S.000000', 1700000000 + n, 'unixepoch')"
        source = "WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last - 1)"
        values = values.format(time=time_of, digest="randomblob(32)")
        statement = f"INSERT INTO events ({columns}) {source} SELECT {values} FROM numbers"
    else:
        values = values.format(time="to_timestamp(1700000000 + n)", digest="sha256(n::text::bytea)")
        statement = f"INSERT INTO events ({columns}) SELECT {values} FROM generate_series(:first, :last - 1) AS n"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement), {"first": first, "last": last, "body": body})
    engine.dispose()


def main(*names: str) -> None:
    """Measure the parts of these names, or all, and print."""
    result = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bench = Bench(folder, stack, result)
        for part in (throughput, latency, start_up, growth, history):
            if part.__name__ in (names or part.__name__):
                part(bench)
    cores = f"{len(os.sched_getaffinity(0))} cores{', pinned' if PINNED else ''}"
    title = f"{datetime.now(UTC):%Y-%m-%d}, {cores}, Python {platform.python_version()}, uvicorn {version('uvicorn')}"
    Console(width=120).print(title, result.table, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
