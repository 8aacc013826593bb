"""PostgreSQL away, in each way that it can be: callbacks go on being accepted, and are stored when it is back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import URL, make_url

from receiver.database.database import Database
from receiver.tools.sender import body_of
from tests.helpers.outcome import Outcome
from tests.helpers.postgres import PrivatePostgreSQL, new_database
from tests.helpers.proxy import Cut, Proxy
from tests.helpers.receiver import KEY, Process, running, wait_until

Record = Callable[[Outcome], None]
End = Callable[[], object]  # ends an outage

CONNECTIONS = 4
PASSWORD = "only-the-receiver-knows-it"
RULES = "local all all trust\nhost all all 127.0.0.1/32 {}\n"  # of pg_hba.conf
STATES = ("CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING")


class Server(PrivatePostgreSQL):
    """The server of these tests, to which only a receiver connects by TCP, with a role and a password of its own."""

    def sql(self, statement: str) -> list[Any]:
        """What the superuser is answered, through the socket, whatever the others may do."""
        return query(self.url, statement)

    def allow_by_tcp(self, method: str) -> None:
        """Set how one must log in."""
        (self.folder / "data/pg_hba.conf").write_text(RULES.format(method))
        if self.is_running:
            self.reload()

    def reload(self) -> None:
        """Read the configuration, and wait until it is in force."""
        before = self.sql("SELECT pg_conf_load_time()")
        self.sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.sql("SELECT pg_conf_load_time()") != before, "the new configuration")

    def disconnect(self) -> int:
        """End the sessions that came by TCP; returns how many."""
        return len(self.sql("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE client_port > 0"))


@contextmanager
def new_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    server.allow_by_tcp("scram-sha-256")
    try:
        server.start()
        server.sql(f"CREATE ROLE receiver LOGIN PASSWORD '{PASSWORD}'")
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class Site:
    """The `database` of one receiver, which reaches it at `port`."""

    server: Server
    database: str
    port: int

    @property
    def url(self) -> str:
        """What the receiver is given."""
        url = URL.create("postgresql+psycopg", "receiver", PASSWORD, "127.0.0.1", self.port, self.database)
        return url.render_as_string(hide_password=False)

    @property
    def socket_url(self) -> URL:
        """The same for the superuser, through the socket."""
        return self.server.url.set(database=self.database)

    def sql(self, statement: str) -> list[Any]:
        """What the superuser is answered here."""
        return query(self.socket_url, statement)

    def migrate(self) -> None:
        """Make the tables."""
        with closing(Database(self.url)) as database:
            database.migrate()

    def receiver(self, folder: Path) -> AbstractContextManager[Process]:
        """The receiver, running in `folder`."""
        return running(folder, tls=False, RECEIVER_DATABASE_URL=self.url)


@contextmanager
def new_site(server: Server) -> Iterator[Site]:
    with new_database(server.url, "OWNER receiver") as url:
        yield Site(server, make_url(url).database or "", server.port)


def connect(url: URL) -> psycopg.Connection[Any]:
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(address, autocommit=True)


def query(url: URL, statement: str) -> list[Any]:
    with closing(connect(url)) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not in pytest's folder: only its owner may enter that, and a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="outages-") as folder, new_server(Path(folder)) as created:
        yield created


@pytest.fixture
def site(server: Server) -> Iterator[Site]:
    with new_site(server) as created:
        yield created


@pytest.fixture(scope="module")
def server_on_a_small_disk() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="outages-") as folder:
        data = Path(folder, "data")
        data.mkdir()
        size = "size=160m,mode=0700,uid=nobody"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", data], check=True)
        try:
            with new_server(Path(folder)) as created:
                yield created
        finally:
            subprocess.run(["umount", data], check=True)


@pytest.fixture
def site_on_a_small_disk(server_on_a_small_disk: Server) -> Iterator[Site]:
    with new_site(server_on_a_small_disk) as created:
        yield created


class Clients:
    """Several connections to a receiver, each of which posts the events of a job of its own, one after the other."""

    def __init__(self, receiver: Process) -> None:
        self.acknowledged: dict[str, list[bytes]] = {uuid4().hex: [] for _ in range(CONNECTIONS)}
        self.began, self.ended = datetime.now(UTC), datetime.max.replace(tzinfo=UTC)
        self.longest = timedelta()  # that one was waited for
        self._receiver = receiver
        self._problems: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(job_id,)) for job_id in self.acknowledged]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End when all that was sent is answered."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self.ended = datetime.now(UTC)
        assert not self._problems

    @property
    def total(self) -> int:
        """How many events are acknowledged."""
        return sum(len(bodies) for bodies in self.acknowledged.values())

    def go_on_for(self, more: int) -> None:
        """Wait until so many more events are acknowledged on each connection."""
        wanted = {job_id: len(bodies) + more for job_id, bodies in self.acknowledged.items()}
        wait_until(
            lambda: self._problems or all(len(self.acknowledged[one]) >= wanted[one] for one in wanted),
            f"{more} events acknowledged on each connection",
        )
        assert not self._problems

    def _post(self, job_id: str) -> None:
        try:
            with closing(self._receiver.connection()) as connection:
                for number in count():
                    body = event_body(job_id, number)
                    began = time.monotonic()
                    connection.request("POST", self._receiver.target(), body)
                    response = connection.getresponse()
                    assert (response.status, response.read()) == (200, b'{"status":"accepted"}')
                    self.longest = max(self.longest, timedelta(seconds=time.monotonic() - began))
                    self.acknowledged[job_id].append(body)
                    if self._stopping.wait(0.02):  # a load, not a flood: two processors also run what is tested
                        return
        except Exception as error:  # noqa: BLE001 (whatever it is: the test fails for it)
            self._problems.append(f"event {len(self.acknowledged[job_id])} of {job_id}: {error!r}")


def event_body(job_id: str, number: int) -> bytes:
    ids = {"room_id": f"room of {job_id}", "job_id": job_id}
    if number % 3 == 0:
        state = STATES[number // 3 % len(STATES)]
        fields = {"output_url": "rtmp://push.example.com/live", "stream_key": str(number), "state": state}
        return body_of("RTMP_STREAM_STATE_CHANGE", ids | fields)
    script = {"scene_script_name": "手工紫砂壶", "shoot_script_sequence_no": str(number), "shoot_script_title": "优惠"}
    return body_of("SHOOT_SCRIPT_SWITCH", ids | script)


class Row(NamedTuple):
    """What the order of a stored event shows in, and the event."""

    number: int
    job_id: str
    sent_at: datetime
    received_at: datetime
    digest: bytes
    body: bytes


def compare(fault: str, site: Site, *clients: Clients) -> Outcome:
    """What was acknowledged against what is stored, which must be in the order in which each connection sent it."""
    columns = "id, job_id, sent_at, received_at, digest, convert_to(body, 'UTF8')"
    rows = [Row(*values) for values in site.sql(f"SELECT {columns} FROM events")]
    sent = {job_id: bodies for one in clients for job_id, bodies in one.acknowledged.items()}
    names = {body: f"{job_id}, {number}" for job_id, bodies in sent.items() for number, body in enumerate(bodies)}
    stored = Counter(row.body for row in rows)
    outcome = Outcome(
        fault,
        1,
        acknowledged=len(names),
        stored=len(rows),
        lost=tuple(name for body, name in names.items() if body not in stored),
        duplicates=tuple(names.get(body, str(body)) for body, times in stored.items() if times > 1),
        altered=tuple(str(body) for body in stored if body not in names),
    )
    outcome.check()
    assert len({(row.sent_at, row.digest) for row in rows}) == len(rows)
    for one in clients:
        for job_id, bodies in one.acknowledged.items():
            job = [row for row in rows if row.job_id == job_id]
            assert_order(job, bodies)
            assert all(one.began <= row.received_at <= one.ended for row in job)
    last = {job_id: last_state([row for row in rows if row.job_id == job_id], sent[job_id]) for job_id in sent}
    assert dict(site.sql("SELECT job_id, state FROM streams")) == last
    assert site.sql("SELECT reason FROM quarantine") == []
    return outcome


def last_state(job: list[Row], bodies: list[bytes]) -> str:
    """The state of a job: of its last second, and there CONNECTING only where it is alone."""
    states = [
        (row.sent_at, state != "CONNECTING", row.received_at, state)
        for row in job
        if (number := bodies.index(row.body)) % 3 == 0
        for state in [STATES[number // 3 % len(STATES)]]
    ]
    return max(states)[-1]


def assert_order(job: list[Row], bodies: list[bytes]) -> None:
    """By arrival, and as the views order a job, they are in the order in which they were sent; so they were stored."""
    assert [row.body for row in sorted(job, key=lambda row: row.received_at)] == bodies
    assert [row.body for row in sorted(job, key=lambda row: (row.sent_at, row.received_at))] == bodies
    seconds = [row.sent_at for row in sorted(job)]  # in one batch those of a second have no order
    assert seconds == sorted(seconds)


@dataclass(frozen=True)
class Outage:
    """How an outage begins, a part of what the log says of it, with which reasons, and how many attempts it lasts.

    In a silence the server does not even refuse: an attempt ends at the receiver's own deadline.
    """

    begin: Callable[[Site], End]
    says: str = ""
    reasons: tuple[str, ...] = ("connection",)
    attempts: int = 3
    from_the_start: bool = False
    is_silence: bool = False

    def __str__(self) -> str:
        return self.begin.__name__.replace("_", " ")


def survive(site: Site, outage: Outage, folder: Path, record: Record, fault: str = "") -> None:
    """Go through an outage under load, from before its begin until after its end."""
    if outage.begin is not schema_missing:
        site.migrate()
    with ExitStack() as away:
        if outage.from_the_start:
            away.callback(outage.begin(site))
        with site.receiver(folder) as receiver:
            with Clients(receiver) as during:
                if not outage.from_the_start:
                    during.go_on_for(2)
                    wait_until(lambda: receiver.metric("database_up") == 1, "a database in use")
                    away.callback(outage.begin(site))
                began = datetime.now(UTC)
                wait_until(lambda: attempts(receiver) >= outage.attempts, "failed attempts", 120)
                during.go_on_for(10)
            # All that was sent is answered, and the outage is not over.
            assert_it_is_away(receiver, outage, during)
            if outage.is_silence:
                # Nobody waited for as long as the projector did.
                assert during.longest < (during.ended - began) / 2
            away.close()
            with Clients(receiver) as after:
                after.go_on_for(3)
                wait_until(lambda: receiver.metric("database_up") == 1, "the database's return")
            wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")
            record(compare(f"database: {fault or outage}", site, during, after))
            assert_it_is_back(receiver, outage, during, after)
            assert receiver.stop() == 0


def assert_it_is_away(receiver: Process, outage: Outage, clients: Clients) -> None:
    """The receiver is well, keeps what it cannot store, and has said so once for each reason."""
    metrics = receiver.metrics()
    assert metrics["database_up", frozenset()] == 0
    assert metrics["journal_events", frozenset()] == clients.total - projected(receiver) >= 10 * CONNECTIONS
    assert receiver.operations("/readyz").status == 200
    said = log_lines(receiver)
    assert_down(said, outage)
    assert any(outage.says in line["problem"] for line in said)


def assert_it_is_back(receiver: Process, outage: Outage, *clients: Clients) -> None:
    """The receiver has counted each event once, and said once that the database is up again."""
    wait_until(lambda: projected(receiver) == sum(one.total for one in clients), "a count of each event")
    wait_until(lambda: log_lines(receiver)[-1]["event"] == "database up again", "the last line")
    *downs, up = log_lines(receiver)
    assert up["event"] == "database up again"
    assert_down(downs, outage)
    assert PASSWORD not in receiver.log


def attempts(receiver: Process) -> float:
    """How often the database failed it."""
    return sum(value for (name, _), value in receiver.metrics().items() if name == "projector_errors_total")


def projected(receiver: Process) -> float:
    """How many events went from its journal to the database."""
    return sum(value for (name, _), value in receiver.metrics().items() if name == "events_total")


def log_lines(receiver: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in receiver.log.splitlines()]


def assert_down(lines: list[dict[str, Any]], outage: Outage) -> None:
    """The lines say once that the database is down, and once of each problem after the first that it still is."""
    assert [line["event"] for line in lines] == ["database down", *["database still down"] * (len(lines) - 1)]
    assert {line["reason"] for line in lines} <= set(outage.reasons)
    problems = [line["problem"] for line in lines]
    assert len(set(problems)) == len(problems) <= 5


# Each of these begins an outage when it is called, and returns what ends it.


def stopped(site: Site) -> End:
    site.server.stop(signal.SIGINT)
    return site.server.start


def killed(site: Site) -> End:
    site.server.stop(signal.SIGKILL)
    return site.server.start


def rejecting(site: Site) -> End:
    site.server.allow_by_tcp("reject")
    site.server.disconnect()
    return lambda: site.server.allow_by_tcp("scram-sha-256")


def another_password(site: Site) -> End:
    site.server.sql("ALTER ROLE receiver PASSWORD 'another'")
    site.server.disconnect()
    return lambda: site.server.sql(f"ALTER ROLE receiver PASSWORD '{PASSWORD}'")


def no_connection_left(site: Site) -> End:
    ((there_are,),) = site.sql(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    )
    with ExitStack() as others:
        taken = 0
        while taken < there_are:
            try:
                others.enter_context(closing(connect(site.socket_url.set(username="receiver"))))
                taken += 1
            except psycopg.OperationalError:
                site.server.disconnect()  # the receiver's is the last to take
        return others.pop_all().close


def schema_missing(site: Site) -> End:
    command = [sys.executable, "-m", "receiver", "migrate"]
    environ = os.environ | {"RECEIVER_DATABASE_URL": site.url, "RECEIVER_KEY": KEY}
    return lambda: subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)


def schema_newer(site: Site) -> End:
    ((before,),) = site.sql("SELECT version_num FROM alembic_version")
    site.sql("UPDATE alembic_version SET version_num = '9999'")
    return lambda: site.sql(f"UPDATE alembic_version SET version_num = '{before}'")


def frozen(site: Site) -> End:
    site.server.freeze()
    return site.server.thaw


def frozen_from_the_start(site: Site) -> End:
    return frozen(site)


def disk_full(site: Site) -> End:
    ballast = site.server.folder / "data/ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))

    def end() -> None:
        ballast.unlink()
        try:
            site.server.sql("SELECT 1")
        except psycopg.OperationalError:
            # It has ended; or PostgreSQL 18 has tried to recover without room, which leaves it neither running nor
            # ended where it fails at the very begin: somebody has to restart it.
            site.server.stop()
            site.server.start()

    return end


def disk_full_until_the_server_stops(site: Site) -> End:
    end = disk_full(site)
    with suppress(psycopg.OperationalError):  # what the receiver writes may have stopped it already
        site.server.sql("SELECT pg_switch_wal()")  # so that the next write needs a new file
    return end


@pytest.mark.parametrize(
    "outage",
    [
        Outage(stopped),
        Outage(killed),
        Outage(rejecting, "pg_hba.conf rejects"),
        Outage(another_password, "password authentication failed"),
        Outage(no_connection_left, "connection slots"),
        Outage(schema_missing, "run `receiver migrate`", ("schema",), from_the_start=True),
        Outage(schema_newer, "upgrade the receiver", ("schema",), from_the_start=True),
        Outage(frozen, attempts=1, is_silence=True),
        Outage(frozen_from_the_start, attempts=1, from_the_start=True),
    ],
    ids=str,
)
def test_outage(site: Site, outage: Outage, tmp_path: Path, record: Record) -> None:
    """While the database is away each callback is answered 200 and one line a reason says so; then all is stored."""
    survive(site, outage, tmp_path, record)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize(
    "outage", [Outage(disk_full, "No space left on device"), Outage(disk_full_until_the_server_stops)], ids=str
)
def test_full_disk(site_on_a_small_disk: Site, outage: Outage, tmp_path: Path, record: Record) -> None:
    """While the database's disk is full each callback is answered 200; when there is room again all is stored."""
    survive(site_on_a_small_disk, outage, tmp_path, record)


@pytest.mark.parametrize("cut", Cut)
def test_connection_cut_at_commit(site: Site, cut: Cut, tmp_path: Path, record: Record) -> None:
    """A connection that breaks before or after the COMMIT, noticed or not, loses nothing and stores nothing twice."""
    with closing(Proxy(site.server.port)) as proxy:

        def begin(_: Site) -> End:
            proxy.cut = cut
            return proxy.heal

        outage = Outage(begin, is_silence=cut.is_silent)
        survive(replace(site, port=proxy.port), outage, tmp_path, record, f"connection cut {cut} COMMIT")
        assert proxy.cuts >= (1 if cut.is_silent else 3)


def test_restarts(site: Site, tmp_path: Path, record: Record) -> None:
    """While the database is restarted again and again each callback is answered 200, and all is stored."""
    site.migrate()
    with site.receiver(tmp_path) as receiver:
        with Clients(receiver) as clients:
            for _ in range(3):
                clients.go_on_for(3)
                wait_until(lambda: receiver.metric("database_up") == 1, "a database in use")
                site.server.stop(signal.SIGINT)
                site.server.start()
            clients.go_on_for(3)
        wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")
        record(replace(compare("database: restarts", site, clients), runs=3))
        wait_until(lambda: projected(receiver) == clients.total, "a count of each event")
        said = [line["event"] for line in log_lines(receiver) if line["event"] != "database still down"]
        # The last are not said, or not yet, where the restarts are so near each other that they are one outage.
        assert said == (["database down", "database up again"] * 3)[: len(said)]
        assert len(said) >= 2


def test_end_while_frozen(site: Site, tmp_path: Path, record: Record) -> None:
    """A receiver whose database is frozen ends in order when it is told to, and stores all after the next start."""
    site.migrate()
    with ExitStack() as away:
        with site.receiver(tmp_path) as receiver:
            with Clients(receiver) as clients:
                clients.go_on_for(2)
                wait_until(lambda: receiver.metric("database_up") == 1, "a database in use")
                away.callback(frozen(site))
                clients.go_on_for(10)
            assert receiver.stop() == 0
            assert "Traceback" not in receiver.log
        away.close()
        with site.receiver(tmp_path) as receiver:
            wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")
            record(compare("database: frozen at the receiver's end", site, clients))
