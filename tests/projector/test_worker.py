"""The worker's process: it can be killed, stopped and left alone at any moment, and nothing is lost by that."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import uvloop

from receiver.database.schema import events, quarantine
from receiver.delivery import Delivery
from receiver.journal.recovery import Readable
from receiver.projector import feeder
from receiver.projector.channel import Channel
from receiver.projector.messages import ClosedError, Kind
from receiver.projector.process import WorkerProcess
from receiver.projector.worker import Worker
from tests.helpers.line import STALE_AFTER, Logs, body, connected, delivery, laid, migrate, rows, started
from tests.helpers.load import awaits_lock, held
from tests.helpers.quick import service
from tests.helpers.receiver import is_alive, running, wait_until

EVENT = "RTMP_STREAM_STATE_CHANGE"


def test_killed_worker_is_started_again(database_url: str, tmp_path: Path, logs: Logs) -> None:
    """After kill -9 of the worker one line and a count say so, and all goes on by itself."""
    migrate(database_url)
    with started(tmp_path, database_url) as line:
        for at in range(3):
            line.put(delivery(body(state="CONNECTED"), at))
            line.drain()
            wait_until(lambda: line.metric("database_up") == 1, "a database")
            killed = line.worker
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda at=at: line.metric("projector_restarts_total") == at + 1, "a restart")  # type: ignore[misc]
            wait_until(lambda killed=killed: line.worker != killed, "another worker")  # type: ignore[misc]
        line.put(delivery(body(state="END"), 3))
        line.drain()
        assert line.outcomes(EVENT) == {"stored": 4}
    assert len(rows(database_url, events)) == 4
    assert logs.own == ["projector ended, starting it again"] * 3


def test_killed_between_commit_and_report(database_url: str, tmp_path: Path) -> None:
    """What the database has and a killed worker did not report is stored once, and counted once, as stored."""
    migrate(database_url)
    with started(tmp_path, database_url) as line:
        wait_until(lambda: line.metric("database_up") == 1, "a database")
        # Reports are not read from here on.
        line.loop.call_soon_threadsafe(line.feeder._worker._writer.transport.pause_reading)  # type: ignore[union-attr] # noqa: SLF001
        line.put(delivery(body(state="CONNECTED")), delivery(body(state="CONNECTED")), delivery(b"nonsense", 1))
        wait_until(lambda: len(rows(database_url, events)) == 1, "a commit")
        assert line.metric("journal_events") == 3
        os.kill(line.worker, signal.SIGKILL)
        line.loop.call_soon_threadsafe(line.feeder._worker._reader._buffer.clear)  # type: ignore[union-attr] # noqa: SLF001
        line.loop.call_soon_threadsafe(line.feeder._worker._writer.transport.abort)  # type: ignore[union-attr] # noqa: SLF001
        line.drain()
        assert line.outcomes(EVENT) == {"stored": 1, "duplicate": 1}
        assert line.outcomes() == {"quarantined": 1}
        assert line.metric("stream_transitions_total", state="CONNECTED") == 1
    assert len(rows(database_url, events)) == 1


def test_killed_in_a_transaction(postgresql_url: str, tmp_path: Path) -> None:
    """What a worker was storing when it was killed, and what was sent ahead, is stored by the next one, in order."""
    migrate(postgresql_url)
    with started(tmp_path, postgresql_url) as line:
        with held(postgresql_url):
            line.put_each(*(delivery(body(state="CONNECTED"), at) for at in range(1200)))
            wait_until(lambda: awaits_lock(postgresql_url), "a batch on its way")
            wait_until(lambda: len(line.feeder._on_the_way) == 2, "one that is sent ahead")  # noqa: SLF001
            os.kill(line.worker, signal.SIGKILL)
            wait_until(lambda: line.metric("projector_restarts_total") == 1, "a restart")
        line.drain()
        assert line.outcomes(EVENT) == {"stored": 1200}
    found = [row["sent_at"] for row in rows(postgresql_url, events)]
    assert found == sorted(found)
    assert len(found) == 1200


def around(state: str) -> list[Delivery]:
    """A deadly delivery among others."""
    return [delivery(body(state=state if at != 2 else "deadly", job_id=f"job-{at}"), at) for at in range(4)]


def line_of_log(logs: Logs, caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    """The one line about what is put aside."""
    assert set(logs.own) == {"projector ended, starting it again", "delivery that ends the projector put aside"}
    (line,) = [vars(one) for one in caplog.records if one.message == "delivery that ends the projector put aside"]
    return line


@pytest.mark.parametrize("deadly", ["rows.parse"], indirect=True)
@pytest.mark.usefixtures("deadly")
def test_delivery_that_ends_the_worker(
    database_url: str, tmp_path: Path, logs: Logs, caplog: pytest.LogCaptureFixture
) -> None:
    """One that ends each worker is found and goes to quarantine as it is; the others are stored, also those behind."""
    migrate(database_url)
    sent = around("CONNECTED")
    with started(tmp_path, database_url, 3600) as line:
        line.put(*sent)
        line.put(delivery(body(state="END"), 9))
        line.settle()
        assert line.outcomes(EVENT) == {"stored": 4}
        assert line.outcomes() == {"quarantined": 1}
        assert line_of_log(logs, caplog)["moved_to"] == "quarantine"
        # It is not offered again with what was kept, which would begin it all anew.
        restarts = line.metric("projector_restarts_total")
        os.kill(line.worker, signal.SIGKILL)
        wait_until(lambda: line.metric("projector_restarts_total") == restarts + 1, "a restart")
        line.settle()
        assert line.metric("projector_restarts_total") == restarts + 1
    assert [row["job_id"] for row in rows(database_url, events)] == [
        *(f"job-{at}" for at in (0, 1, 3)),
        "job",
    ]
    (kept,) = rows(database_url, quarantine)
    assert (kept["reason"], kept["body"], kept["digest"]) == ("crash", sent[2].body, sent[2].digest)


@pytest.mark.parametrize("deadly", ["database.Database.store"], indirect=True)
@pytest.mark.usefixtures("deadly")
def test_delivery_that_cannot_be_quarantined(
    tmp_path: Path, logs: Logs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where quarantining ends the worker too, it is kept in a file, which is recovered once storing works."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    migrate(url)
    with started(tmp_path, url) as line:
        line.put(*around("CONNECTED"))
        line.settle()
        assert line.outcomes(EVENT) == {"stored": 3}
        assert line.outcomes() == {}
        assert line_of_log(logs, caplog)["moved_to"] == f"{tmp_path}/journal.db.aside"
    monkeypatch.undo()
    read = list(Readable(tmp_path / "journal.db.aside"))
    assert read == [around("CONNECTED")[2]]
    assert len(rows(url, events)) == 3


def test_killed_while_it_stores_nothing(postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a worker is killed that could not even begin to store what waits, that is not put aside."""
    monkeypatch.setattr(feeder, "_LONGEST_PAUSE", 0.1)
    with started(tmp_path, postgresql_url) as line:
        line.put(delivery(body(state="CONNECTED")))
        for at in range(1, 9):  # more than before anything is put aside
            wait_until(lambda at=at: line.metric("projector_errors_total", reason="schema") >= at, "an attempt")  # type: ignore[misc]
            os.kill(line.worker, signal.SIGKILL)
            wait_until(lambda at=at: line.metric("projector_restarts_total") == at, "a restart")  # type: ignore[misc]
        migrate(postgresql_url)
        line.settle()
        assert line.outcomes(EVENT) == {"stored": 1}


def test_worker_that_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    """A worker that ends at once is started ever less often; callbacks are taken, and the database is not up."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with started(tmp_path, f"sqlite:///{tmp_path}/receiver.db") as line:
        line.put(delivery(body(state="CONNECTED")))
        wait_until(lambda: line.metric("projector_restarts_total") >= 3, "restarts")
        began = time.monotonic()
        wait_until(lambda: line.metric("projector_restarts_total") >= 5, "restarts")
        assert time.monotonic() - began > 0.8
        assert (line.metric("journal_events"), line.metric("database_up")) == (1, 0)
        monkeypatch.undo()
        line.drain()
    assert set(logs.own) == {"projector ended, starting it again"}


def test_sending_to_a_worker_that_has_ended(tmp_path: Path) -> None:
    """What is sent when the end of a worker was seen already is an end too, and no error that ends the receiver."""
    service("the projector's worker")  # which uvloop starts unseen

    async def send() -> None:
        worker = await WorkerProcess.start(f"sqlite:///{tmp_path}/receiver.db", STALE_AFTER)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ClosedError):
            await worker.receive()
        with contextlib.suppress(OSError):
            await worker._writer.wait_closed()  # noqa: SLF001
        with pytest.raises(ClosedError):
            await worker.send(Kind.BATCH, b"")
        assert await worker.end() == -signal.SIGKILL

    uvloop.run(send())


def test_stopped_worker(tmp_path: Path) -> None:
    """While the worker is stopped (SIGSTOP) callbacks are taken and the journal grows; then all is stored once."""
    with running(tmp_path, tls=False) as receiver:
        wait_until(lambda: receiver.metric("database_up") == 1, "a database")
        os.kill(receiver.worker, signal.SIGSTOP)
        for at in range(50):
            assert receiver.post(body(state="CONNECTED", number=at)).status == 200
        assert receiver.metric("journal_events") == 50
        assert receiver.operations("/readyz").status == 200
        os.kill(receiver.worker, signal.SIGCONT)
        assert len(receiver.rows("SELECT * FROM events")) == 50
        # And one that is stopped when the receiver ends does not keep it.
        worker = receiver.worker
        os.kill(worker, signal.SIGSTOP)
        assert receiver.post(body(state="END")).status == 200
        assert receiver.stop() == 0
        assert not is_alive(worker)
    assert "Traceback" not in receiver.log


def test_worker_ends_with_the_receiver(postgresql_url: str, tmp_path: Path) -> None:
    """When the receiver is killed (kill -9) its worker ends too, also in the middle of a transaction, and stopped."""
    migrate(postgresql_url)
    with running(tmp_path, tls=False, RECEIVER_DATABASE_URL=postgresql_url) as receiver:
        worker = receiver.worker
        with held(postgresql_url):
            assert receiver.post(body(state="CONNECTED")).status == 200
            wait_until(lambda: awaits_lock(postgresql_url), "a batch on its way")
            os.kill(worker, signal.SIGSTOP)  # so that it cannot end by itself
            receiver.stop(signal.SIGKILL)
            wait_until(lambda: not is_alive(worker), "the worker's end")


def test_signals_to_all_processes(tmp_path: Path) -> None:
    """Ctrl-C and systemd send a signal to both processes: the receiver drains the journal all the same."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with running(tmp_path, tls=False) as receiver:
            wait_until(lambda receiver=receiver: receiver.metric("database_up") == 1, "a database")  # type: ignore[misc]
            os.kill(receiver.worker, number)
            assert receiver.post(body(state="CONNECTED", number=number.name)).status == 200
            assert len(receiver.rows("SELECT * FROM events")) > 0
            assert receiver.metric("projector_restarts_total") == 0
            worker = receiver.worker
            assert receiver.stop() == 0
            assert not is_alive(worker)


def test_secret_is_not_shown(postgresql_url: str, tmp_path: Path) -> None:
    """Neither the arguments nor the environment of the worker show the database's URL."""
    with laid(tmp_path, postgresql_url + "&application_name=the-secret") as line:
        line.start()
        wait_until(lambda: line.metric("projector_errors_total", reason="schema"), "an attempt")
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{line.worker}/{name}").read_bytes()
            assert b"the-secret" not in shown
            assert quote(postgresql_url).encode() not in shown


def test_worker_stands_back_and_is_private(tmp_path: Path) -> None:
    """The worker leaves processor and memory to the callbacks, and what it makes is its owner's alone."""
    with started(tmp_path, f"sqlite:///{tmp_path}/receiver.db") as line:
        wait_until(lambda: line.metric("database_up") == 1, "a database")
        assert os.getpriority(os.PRIO_PROCESS, line.worker) == 10
        shown = {
            name: Path(f"/proc/{line.worker}/{name}") for name in ("oom_score_adj", "status", "autogroup", "sched")
        }
        assert shown["oom_score_adj"].read_text() == "500\n"
        assert "Umask:\t0077" in shown["status"].read_text()
        if shown["autogroup"].exists():
            assert shown["autogroup"].read_text().endswith(" nice 10\n")
        if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12):
            assert re.search(r"se\.slice +: +20000000\n", shown["sched"].read_text())


def test_worker_whose_parent_has_ended(tmp_path: Path) -> None:
    """A worker that starts when its parent has ended already, ends too."""
    command = [sys.executable, "-m", "receiver.projector.worker", "0", "1"]
    assert subprocess.run(command, cwd=tmp_path, check=False, timeout=30).returncode == 1


@pytest.mark.parametrize(
    "module", ["receiver.database.database", "receiver.projector.store", "alembic", "psycopg", "jinja2"]
)
def test_callbacks_process_needs_no_database(tmp_path: Path, module: str) -> None:
    """What takes callbacks does without the database's modules, and those of a page that nobody has asked for."""
    code = f"import sys, receiver.app; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=60).returncode == 0


def test_attempts_go_on(tmp_path: Path) -> None:
    """However long the database is away, it is tried again within two seconds: a standby that takes over is found."""

    class Attempts(Channel):
        """Takes no time, and ends after many attempts."""

        pauses: list[float] = []  # noqa: RUF012 (of one test)

        def pause(self, seconds: float) -> None:
            self.pauses.append(seconds)
            if len(self.pauses) == 30:
                raise ClosedError

    with connected() as (own, its):
        its.setblocking(False)
        channel = Attempts(own)
        Worker(channel, f"sqlite:///{tmp_path}", STALE_AFTER).run()  # which is a folder
    assert len(channel.pauses) == 30
    assert channel.pauses[0] <= 0.1
    assert 1 <= max(channel.pauses) <= 2
