"""Recovery of a damaged journal beside the running work, across crashes, and by the command."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.schema import events, quarantine
from receiver.delivery import Delivery
from receiver.journal.damaged import unrecovered
from receiver.journal.record import encode
from receiver.projector import recovery
from receiver.projector.channel import Channel
from receiver.projector.messages import Kind, frame, in_json
from receiver.projector.recovery import recover_all
from receiver.projector.store import Store
from receiver.projector.suspects import Suspects
from receiver.projector.worker import Worker
from tests.helpers.database import sql
from tests.helpers.journal import Deaths, make_half_taken_over, run_in_child
from tests.helpers.line import STALE_AFTER, Logs, body, connected, delivery, laid, migrate, rows, started
from tests.helpers.load import awaits_lock, held
from tests.helpers.receiver import wait_until

COUNT = 250  # of which one is damaged: three batches


def numbered(first: int, last: int) -> list[Delivery]:
    return [delivery(body(state="CONNECTED", job_id=f"job-{at}"), at) for at in range(first, last)]


def damage(folder: Path, url: str) -> Path:
    """A journal of which the first row is damaged, and a database; returns the journal's path."""
    migrate(url)
    with laid(folder, url) as line:
        line.put_each(*numbered(0, COUNT))
    path = folder / "journal.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET oldest = 0 WHERE id = 1")
    return path


def stored(url: str) -> list[str]:
    """The jobs of all events, in the order of the times."""
    return [row["job_id"] for row in rows(url, events)]


def jobs(first: int, last: int) -> list[str]:
    return [f"job-{at}" for at in range(first, last)]


def wait_for_recovery(journal: Path) -> Path:
    """Wait until the one damaged file is marked as recovered; returns its new name."""
    wait_until(lambda: list(journal.parent.glob("*.recovered-*")) and not unrecovered(journal), "a recovered journal")
    (found,) = [one for one in journal.parent.glob("*.recovered-*") if not one.name.endswith("-wal")]
    return found


def test_damaged_journal_is_recovered(database_url: str, tmp_path: Path, logs: Logs) -> None:
    """What can be read of a damaged journal, its WAL included, is stored and counted; two lines and a name say so."""
    journal = damage(tmp_path, database_url)
    with laid(tmp_path, database_url) as line:
        line.put(*numbered(COUNT, COUNT + 5))  # into the WAL
        line.start()
        recovered = wait_for_recovery(journal)
        wait_until(lambda: line.outcomes("RTMP_STREAM_STATE_CHANGE") == {"stored": COUNT + 4}, "all outcomes")
        line.stop()
        assert line.metric("events_restored_total") == 0
    assert stored(database_url) == jobs(1, COUNT + 5)
    assert rows(database_url, quarantine) == []
    assert logs.own == ["journal damaged, moved aside"]
    (done,) = logs.worker
    assert (done["event"], done["moved_to"]) == ("damaged journal recovered", str(recovered))
    assert [done[name] for name in ("read", "stored", "rows_lost")] == [COUNT + 4, COUNT + 4, 1]
    kept = recovered.name
    assert {one.name for one in tmp_path.glob("journal.db.*")} == {kept, f"{kept}-wal"}


def die_at_step(folder: str, url: str, step: str) -> None:
    """Move a damaged journal aside and recover it, and die before one of the steps that leave a trace."""
    deaths = Deaths(int(step))
    with laid(Path(folder), url) as line:
        line.put(*numbered(COUNT, COUNT + 5))
        deaths.before(Path, "rename")
        deaths.before(Store, "store")
        line.read()
        # As the worker does.
        recovery = recover_all(line.journal.damaged, Suspects(Store(Database(url))), lambda _: None)
        while next(recovery):
            pass
        os._exit(deaths.steps)


STEPS = ["file aside", "WAL aside", "batch 1", "batch 2", "batch 3", "WAL recovered", "file recovered"]


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_death_at_each_step(database_url: str, tmp_path: Path, step: int) -> None:
    """A process that ends anywhere on the way loses nothing that can be read, and nothing is stored twice."""
    journal = damage(tmp_path, database_url)
    assert run_in_child(die_at_step, str(tmp_path), database_url, str(step))[0] == 9
    assert not list(tmp_path.glob("*.recovered-*-wal")) or step > STEPS.index("WAL recovered")
    with started(tmp_path, database_url):
        recovered = wait_for_recovery(journal)
    assert stored(database_url) == jobs(1, COUNT + 5)
    assert {one.name for one in tmp_path.glob("journal.db.*")} == {recovered.name, f"{recovered.name}-wal"}


def test_steps_are_all(tmp_path: Path) -> None:
    """There are no more steps than those at which the process ends."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    damage(tmp_path, url)
    assert run_in_child(die_at_step, str(tmp_path), url, "99")[0] == len(STEPS)


def test_worker_that_is_killed(postgresql_url: str, tmp_path: Path) -> None:
    """A worker that is killed in the middle of a recovery is followed by one that begins it again."""
    journal = damage(tmp_path, postgresql_url)
    with held(postgresql_url), laid(tmp_path, postgresql_url) as line:
        assert line.read() == []
        line.start()
        wait_until(lambda: awaits_lock(postgresql_url), "a batch on its way")
        os.kill(line.worker, signal.SIGKILL)
        wait_until(lambda: line.metric("projector_restarts_total") == 1, "a restart")
        assert unrecovered(journal)
    with started(tmp_path, postgresql_url):
        wait_for_recovery(journal)
    assert stored(postgresql_url) == jobs(1, COUNT)


@pytest.fixture
def moved(database_url: str, tmp_path: Path) -> Path:
    """A damaged journal that is moved aside, and not recovered yet; returns the journal's path."""
    journal = damage(tmp_path, database_url)
    with laid(tmp_path, database_url) as line:
        assert line.read() == []
    assert len(unrecovered(journal)) == 1
    return journal


def test_callbacks_go_on_beside_it(moved: Path, database_url: str) -> None:
    """While a damaged journal is recovered deliveries are taken, and stored before the rest of it."""
    with connected() as (own, its), closing(own):
        own.sendall(frame(Kind.DAMAGED, in_json(str(unrecovered(moved)[0]))))
        worker = Worker(Channel(its), database_url, STALE_AFTER)
        worker._step()  # noqa: SLF001 (a step alone)
        for at in range(COUNT, COUNT + 3):
            own.sendall(frame(Kind.BATCH, encode(numbered(at, at + 1))))
            worker._step()  # noqa: SLF001
        own.close()
        worker.run()
    by_id = [row["job_id"] for row in sql(database_url, "SELECT job_id FROM events ORDER BY id")]
    first, second = by_id.index(f"job-{COUNT}"), by_id.index(f"job-{COUNT + 1}")
    assert (first, second) == (100, 201)
    assert stored(database_url) == jobs(1, COUNT + 3)


def test_end_in_the_middle(moved: Path, database_url: str, tmp_path: Path) -> None:
    """A stop does not wait for a recovery: the next start begins it again, and what is there already stays once."""
    with connected() as (own, its):
        own.sendall(frame(Kind.DAMAGED, in_json(str(unrecovered(moved)[0]))))
        worker = Worker(Channel(its), database_url, STALE_AFTER)
        worker._step()  # noqa: SLF001 (a step alone)
        own.close()
        worker.run()
    assert stored(database_url) == jobs(1, 101)
    assert len(unrecovered(moved)) == 1
    with started(tmp_path, database_url):
        wait_for_recovery(moved)
    assert stored(database_url) == jobs(1, COUNT)


def test_database_that_is_away(tmp_path: Path, logs: Logs) -> None:
    """A recovery waits for the database, as all else does, and callbacks are taken meanwhile."""
    there, link = tmp_path / "receiver.db", tmp_path / "link.db"
    damage(tmp_path, f"sqlite:///{there}")
    link.symlink_to(tmp_path)  # a directory, where no database can be
    (tmp_path / "new link").symlink_to(there)
    with laid(tmp_path, f"sqlite:///{link}") as line:
        assert line.read() == []
        line.start()
        wait_until(lambda: line.metric("projector_errors_total", reason="connection") >= 2, "attempts")
        line.put(*numbered(COUNT, COUNT + 1))
        assert len(unrecovered(tmp_path / "journal.db")) == 1
        (tmp_path / "new link").replace(link)
        wait_for_recovery(tmp_path / "journal.db")
        line.stop()
    assert stored(f"sqlite:///{there}") == jobs(1, COUNT + 1)
    assert logs.own == ["journal damaged, moved aside"]
    assert logs.outage == ["database down", "database up again", "damaged journal recovered"]


def test_problem_of_the_recovery_alone(
    postgresql_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps only the recovery from the database is said, holds up nothing else, and is got over."""
    monkeypatch.setattr(recovery, "_PAUSE", 0.01)
    damage(tmp_path, postgresql_url)
    sql(
        postgresql_url,
        "CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$",
    )
    sql(
        postgresql_url,
        "CREATE TRIGGER no_space BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.job_id = 'job-150') "
        "EXECUTE FUNCTION no_space()",
    )
    path = tmp_path / "journal.db"
    with laid(tmp_path, postgresql_url) as line:
        assert line.read() == []
    with connected() as (own, its):
        # In a thread, so that the pause can be set.
        worker = threading.Thread(target=Worker(Channel(its), postgresql_url, STALE_AFTER).run)
        worker.start()
        own.sendall(frame(Kind.DAMAGED, in_json(str(unrecovered(path)[0]))))
        wait_until(lambda: len(stored(postgresql_url)) == 100, "the first batch")
        for at in range(COUNT, COUNT + 3):
            own.sendall(frame(Kind.BATCH, encode(numbered(at, at + 1))))
            wait_until(lambda at=at: f"job-{at}" in stored(postgresql_url), "what comes meanwhile")  # type: ignore[misc]
        sql(postgresql_url, "DROP TRIGGER no_space ON events")
        wait_for_recovery(path)
        own.close()
        worker.join()
    assert stored(postgresql_url) == jobs(1, COUNT + 3)
    said = [record.message for record in caplog.records]
    assert list(dict.fromkeys(said)) == [
        "journal damaged, moved aside",
        "damaged journal not recovered yet",
        "damaged journal recovered",
    ]
    assert [vars(caplog.records[-1])[name] for name in ("read", "stored")] == [COUNT - 1, COUNT - 1 - 100]


def test_file_that_cannot_be_read(tmp_path: Path, logs: Logs) -> None:
    """What cannot be read at all is said once, keeps its name, and stands in the way of no other."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    journal = damage(tmp_path, url)
    nonsense = tmp_path / "journal.db.damaged-20260101T000000"
    nonsense.write_bytes(b"nonsense" * 1000)
    with started(tmp_path, url):
        wait_until(lambda: list(tmp_path.glob("*.recovered-*")), "recovery of the other")
    assert unrecovered(journal) == [nonsense]
    assert stored(url) == jobs(1, COUNT)
    assert nonsense.read_bytes() == b"nonsense" * 1000
    (said,) = [one for one in logs.worker if one["event"] == "damaged journal cannot be read"]
    assert (said["level"], said["journal"]) == ("error", str(nonsense))


def test_file_of_which_one_table_cannot_be_read(tmp_path: Path, logs: Logs) -> None:
    """What can be read before the problem shows is stored to the last; the file keeps its name, which is said."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    migrate(url)
    path = tmp_path / "journal.db.damaged-20260101T000000"
    make_half_taken_over(path, numbered(0, COUNT))
    with started(tmp_path, url):
        wait_until(lambda: logs.worker, "a line")
    assert stored(url) == jobs(0, COUNT)
    assert unrecovered(tmp_path / "journal.db") == [path]
    (said,) = logs.worker
    assert (said["event"], said["read"], said["stored"]) == ("damaged journal cannot be read", COUNT, COUNT)


def recover(folder: Path, url: str, file: Path) -> Result:
    environ = {"RECEIVER_KEY": "k" * 32, "RECEIVER_DATABASE_URL": url, "RECEIVER_JOURNAL": str(folder / "journal.db")}
    return CliRunner().invoke(main, ["recover", str(file)], env=environ | {"RECEIVER_CONFIG": os.devnull})


def test_command(moved: Path, database_url: str, tmp_path: Path) -> None:
    """`receiver recover` works beside a receiver, again and again, and leaves the file as it is."""
    (damaged,) = unrecovered(moved)
    aside = tmp_path / "aside.db"  # where the receiver does not look
    before = {}
    for suffix in ("", "-wal"):
        before[f"aside.db{suffix}"] = Path(f"{damaged}{suffix}").read_bytes()
        Path(f"{aside}{suffix}").write_bytes(before[f"aside.db{suffix}"])
    damaged.rename(tmp_path / "elsewhere.db")
    with started(tmp_path, database_url) as line:
        for new in (COUNT - 1, 0):
            result = recover(tmp_path, database_url, aside)
            assert result.exit_code == 0
            assert result.output == (
                f"Read {COUNT - 1} deliveries, of which {new} were not there yet. Rows that cannot be read: 1.\n"
            )
        assert {one.name: one.read_bytes() for one in tmp_path.glob("aside.db*")} == before
        line.put(*numbered(COUNT, COUNT + 1))
        line.drain()
    assert stored(database_url) == jobs(1, COUNT + 1)


def test_command_takes_a_sound_journal(database_url: str, tmp_path: Path) -> None:
    """A journal of another machine is stored as well, also what its WAL has, and what is refused goes to quarantine."""
    folder = tmp_path / "other"
    folder.mkdir()
    migrate(database_url)
    with laid(folder, database_url) as line:
        line.put(*numbered(0, 3), delivery(b"nonsense", 3))
        for suffix in ("", "-wal"):
            (tmp_path / f"copy.db{suffix}").write_bytes((folder / f"journal.db{suffix}").read_bytes())
    assert recover(tmp_path, database_url, tmp_path / "copy.db").output.startswith("Read 4 deliveries, of which 4 ")
    assert (stored(database_url), len(rows(database_url, quarantine))) == (jobs(0, 3), 1)


def test_command_that_cannot(tmp_path: Path) -> None:
    """The receiver's own journal, one in use, and what is none, are refused with one line and the exit code 1."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    migrate(url)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "nonsense").write_bytes(b"nonsense" * 1000)
    with laid(tmp_path, url), laid(other, url):
        for file, problem in {
            tmp_path / "journal.db": "is the receiver's own journal",
            tmp_path / "nonsense": "cannot be read: file is not a database",
            tmp_path / "receiver.db": "cannot be read: it is no journal",
        }.items():
            result = recover(tmp_path, url, file)
            assert (result.exit_code, result.output.count("\n")) == (1, 1)
            assert f"{file} {problem}" in result.output
        code, printed = run_in_child(recover_and_tell, str(tmp_path), url, str(other / "journal.db"))
        assert (code, printed) == (1, f"Error: {other}/journal.db cannot be read: it is in use\n")


def recover_and_tell(folder: str, url: str, file: str) -> None:
    """Print what the command prints, and end with its code."""
    result = recover(Path(folder), url, Path(file))
    print(result.output, end="", flush=True)  # noqa: T201
    os._exit(result.exit_code)
