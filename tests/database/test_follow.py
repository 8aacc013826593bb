"""`receiver history --follow`: each event that is stored, once, whoever commits when."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from sqlalchemy import Connection, create_engine, text

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.delete import delete_job
from receiver.database.follow import Follower
from receiver.database.insert import Row, distinct, insert_new
from receiver.database.rows import to_row
from receiver.database.schema import events
from receiver.delivery import Delivery
from tests.helpers.postgres import PrivatePostgreSQL
from tests.helpers.receiver import KEY, wait_until

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_numbers = count()


def reply(job: str = "job", **fields: str) -> Row:
    """An event of its own, with its number as its reply_id."""
    return row_of({"event_type": "REPLY_COMMAND_FINISH", "message": {"job_id": job} | fields})


def row_of(body: dict[str, object]) -> Row:
    number = next(_numbers)
    at = NOON.timestamp() + number % 7  # in no order
    row = to_row(Delivery("default", at, at, b"%d" % number, json.dumps(body).encode()))
    return row | {"reply_id": str(number)}


def given(follower: Follower) -> list[str]:
    """The numbers of the events that it gives next."""
    return [row["reply_id"] for rows in follower.new() for row in rows]


def numbers(rows: Sequence[Row]) -> list[str]:
    return [row["reply_id"] for row in rows]


def test_each_event_once(database: Database) -> None:
    """What is stored after the beginning is given in order, once, also in more than a page, and nothing before it."""
    database.store([reply() for _ in range(30)], [])
    follower = Follower(database)
    assert given(follower) == []
    for size in (1, 0, 3, 2500, 1, 0):
        rows = [reply() for _ in range(size)]
        database.store(rows, [])
        assert sorted(given(follower)) == sorted(numbers(rows))
        database.store(rows[:5], [])  # which are there
    assert given(follower) == []


def test_one_job(database: Database) -> None:
    """Of one job only its own events are given, and it does not read those of others again and again."""
    follower = Follower(database, job_id="job")
    for _ in range(5):
        rows = [reply(), reply("other"), reply("job1")]
        database.store(rows, [])
        assert given(follower) == numbers(rows)[:1]
    if not database.is_sqlite:  # where ids may be given again
        assert len(vars(follower)["_given"]) <= 2


class Receivers:
    """Transactions of receivers that share a database, which last as long as the test wants."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._engine = create_engine(url, pool_size=20)
        self._stack = stack
        stack.callback(self._engine.dispose)

    def begin(self, rows: Sequence[Row]) -> Connection:
        """Insert without committing."""
        connection = self._stack.enter_context(self._engine.connect())
        insert_new(connection, events, distinct(rows))
        return connection


@pytest.fixture
def receivers(postgresql_url: str) -> Iterator[Receivers]:
    with closing(Database(postgresql_url)) as database, ExitStack() as stack:
        database.migrate()
        # The row of `jobs` is there, for which they would wait for each other.
        database.store([reply() | {"sent_at": NOON}], [])
        yield Receivers(postgresql_url, stack)


def test_commits_out_of_order(receivers: Receivers, postgresql_url: str) -> None:
    """An event with a lower id that is committed later, however much later, is given then; so is one begun before."""
    with closing(Database(postgresql_url)) as database:
        early, late, rolled_back = [reply()], [reply()], [reply()]
        before = receivers.begin(early)
        follower = Follower(database)
        first = receivers.begin(late)
        third = receivers.begin(rolled_back)
        for _ in range(4):
            rows = [reply() for _ in range(1200)]
            database.store(rows, [])
            assert sorted(given(follower)) == sorted(numbers(rows))
            assert given(follower) == []
        third.rollback()
        first.commit()
        assert given(follower) == numbers(late)
        assert given(follower) == []
        before.commit()
        assert given(follower) == numbers(early)
        for _ in range(3):
            assert given(follower) == []
        assert len(vars(follower)["_given"]) <= 1200  # what cannot come any more is forgotten


@pytest.mark.parametrize("seed", range(12))
def test_any_schedule(receivers: Receivers, postgresql_url: str, seed: int) -> None:
    """Whatever the order in which transactions begin, insert, commit and are rolled back, all committed come once."""
    chance = random.Random(seed)
    under_way: list[tuple[Connection, list[Row]]] = []
    committed: list[str] = []
    found: list[str] = []
    with closing(Database(postgresql_url)) as database:
        under_way.extend((receivers.begin(rows), rows) for rows in ([reply()], [reply(), reply()]))
        follower = Follower(database)
        for _ in range(80):
            step = chance.random()
            if step < 0.35 and len(under_way) < 12:
                rows = [reply() for _ in range(chance.randint(1, 4))]
                under_way.append((receivers.begin(rows), rows))
            elif step < 0.45 and under_way:
                connection, rows = chance.choice(under_way)
                more = [reply()]
                insert_new(connection, events, distinct(more))
                rows += more
            elif step < 0.7 and under_way:
                connection, rows = under_way.pop(chance.randrange(len(under_way)))
                if chance.random() < 0.8:
                    connection.commit()
                    committed += numbers(rows)
                connection.close()
            else:
                found += given(follower)
                assert sorted(found) == sorted(committed)
        for connection, rows in under_way:
            connection.commit()
            committed += numbers(rows)
        found += given(follower)
        assert sorted(found) == sorted(committed)


def test_deleted_events(database: Database) -> None:
    """After the newest events were deleted, whose ids SQLite gives again, new ones are given all the same."""
    follower = Follower(database)
    database.store([reply("test") for _ in range(9)], [])
    assert len(given(follower)) == 9
    assert given(follower) == []
    for _ in delete_job(database, "test"):
        pass
    assert given(follower) == []
    for size in (3, 20):
        rows = [reply() for _ in range(size)]
        database.store(rows, [])
        assert sorted(given(follower)) == sorted(numbers(rows))


def test_ids_that_are_given_again(database: Database) -> None:
    """Events that got the ids of deleted ones since the last call are given, and none of those that stayed again."""
    database.store([reply() for _ in range(20)], [])
    follower = Follower(database)
    database.store([reply("test") for _ in range(9)], [])
    assert len(given(follower)) == 9
    for size in (9, 3, 30):
        for _ in delete_job(database, "test"):
            pass
        rows = [reply("test") for _ in range(size)]
        database.store(rows, [])
        assert sorted(given(follower)) == sorted(numbers(rows))
        assert given(follower) == []


def test_error_between(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a call that failed on its way the next one gives what is left, and nothing again."""
    follower = Follower(database)
    rows = [reply() for _ in range(2500)]
    database.store(rows, [])
    read, calls = database.read, count()

    def fails(query: object) -> list[Row]:
        if next(calls) == 1:
            raise ConnectionError
        return read(query)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "read", fails)
    pages = follower.new()
    found = numbers(next(pages))
    with pytest.raises(ConnectionError):
        next(pages)
    found += given(follower) + given(follower)
    assert sorted(found) == sorted(numbers(rows))


def test_only_the_newest_are_read(database: Database) -> None:
    """It asks an index for what is above an id, and for the highest id."""
    database.store([reply() for _ in range(100)], [])
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with database.transaction() as connection:
        if not database.is_sqlite:  # so small a table would be read whole
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        for query in (
            "* FROM ordered_events WHERE id > 90 ORDER BY id LIMIT 1000",
            "id, digest FROM ordered_events WHERE id = (SELECT max(id) FROM ordered_events)",
            "digest FROM ordered_events WHERE id = 90",
        ):
            plan = "\n".join(str(row[-1]) for row in connection.execute(text(f"{explain} SELECT {query}")))
            assert re.search(r"events_id|INTEGER PRIMARY KEY|^SEARCH events$", plan), plan
            assert "SCAN" not in plan


class Following:
    """A process that runs `receiver history --follow`."""

    def __init__(self, url: str, folder: Path, *arguments: str, **environ: str) -> None:
        self._out, self._err = folder / "out", folder / "err"
        command = [sys.executable, "-m", "receiver", "history", "--follow", *arguments]
        environ = os.environ | {"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": KEY} | environ
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, cwd=folder, env=environ, stdout=out, stderr=err)
        self.wait_for_news("until Ctrl-C")

    def wait_for_news(self, words: str) -> None:
        wait_until(lambda: words in self._err.read_text() or self.process.poll() is not None, words)
        assert self.process.poll() is None, self._err.read_text()

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.shown, words)

    @property
    def shown(self) -> str:
        return self._out.read_bytes().decode(errors="replace")

    @property
    def news(self) -> str:
        return self._err.read_text()


@contextmanager
def following(url: str, folder: Path, *arguments: str, **environ: str) -> Iterator[Following]:
    """A process that follows, and is ended by Ctrl-C."""
    one = Following(url, folder, *arguments, **environ)
    with one.process:
        try:
            yield one
        finally:
            one.process.send_signal(signal.SIGINT)
        assert one.process.wait(60) == 0, one.news
    assert "Traceback" not in one.news


def stored(url: str, *bodies: dict[str, object]) -> None:
    with closing(Database(url)) as database:
        database.store([row_of(body) | {"sent_at": NOON} for body in bodies], [])


EVIL = "\x1b]0;owned\x07"
LIVESTREAM: list[dict[str, object]] = [
    {
        "event_type": "RTMP_STREAM_STATE_CHANGE",
        "message": {"job_id": "one", "state": "CONNECTED", "output_url": "rtmp://push/a", "stream_key": "hidden"},
    },
    {
        "event_type": "SHOOT_SCRIPT_SWITCH",
        "message": {"job_id": "two", "scene_script_name": "春季新茶", "shoot_script_sequence_no": 1},
    },
    {"event_type": "REPLY_COMMAND_FINISH", "message": {"job_id": "one"}},
    {"event_type": f"SOMETHING{EVIL}", "message": {"job_id": f"three{EVIL}"}},
]


def test_lines(database_url: str, tmp_path: Path) -> None:
    """Each event is a line with its time, job, and what it was, until Ctrl-C, which is no failure."""
    with closing(Database(database_url)) as database:
        database.migrate()
    stored(database_url, *LIVESTREAM)
    with following(database_url, tmp_path) as one:
        stored(database_url, *LIVESTREAM)
        wait_until(lambda: one.shown.count("\n") == 4, "four lines")
    lines = one.shown.splitlines()
    assert [re.sub(r"reply \d+", "reply", line) for line in sorted(lines)] == sorted(
        [
            "2026-03-01 12:00:00  one  CONNECTED rtmp://push/a",
            "2026-03-01 12:00:00  two  春季新茶 · 1",
            "2026-03-01 12:00:00  one  reply",
            "2026-03-01 12:00:00  three�]0;owned�  SOMETHING�]0;owned�",
        ]
    )


def test_json_of_one_job(database_url: str, tmp_path: Path) -> None:
    """With --json each line is an object with the columns of the views, and no secret; JOB picks one job."""
    with closing(Database(database_url)) as database:
        database.migrate()
    stored(database_url, *LIVESTREAM)
    with following(database_url, tmp_path, "on", "--json") as one:
        stored(database_url, *LIVESTREAM)
        wait_until(lambda: one.shown.count("\n") == 2, "two lines")
    found = sorted(map(json.loads, one.shown.splitlines()), key=lambda row: str(row["event_type"]))
    assert [row["event_type"] for row in found] == ["REPLY_COMMAND_FINISH", "RTMP_STREAM_STATE_CHANGE"]
    assert found[1]["output_url"] == "rtmp://push/a"
    assert found[1]["sent_at"] == "2026-03-01T12:00:00Z"
    assert "hidden" not in one.shown
    assert not {"stream_key", "body", "digest"} & found[1].keys()


def test_database_that_goes_away(tmp_path: Path) -> None:
    """An outage is told once, as is its end; what was stored around it is all shown, once."""
    with TemporaryDirectory(prefix="postgresql-") as folder, ExitStack() as stack:  # whose owner may be another user
        server = PrivatePostgreSQL(Path(folder))
        server.start()
        stack.callback(server.stop)
        url = server.url.render_as_string(hide_password=False)
        with closing(Database(url)) as database:
            database.migrate()
        with following(url, tmp_path) as one:
            stored(url, reply_body("before"))
            one.wait_for("before")
            server.stop()
            one.wait_for_news("does not answer, trying again")
            server.start()
            stored(url, reply_body("after"))
            one.wait_for("after")
            one.wait_for_news("answers again")
    assert [line.split()[2] for line in one.shown.splitlines()] == ["before", "after"]
    assert one.news.count("does not answer") == 1


def reply_body(job: str) -> dict[str, object]:
    return {"event_type": "REPLY_COMMAND_FINISH", "message": {"job_id": job}}


@pytest.mark.parametrize("option", [("--csv",), ("--since", "1d"), ("--room", "r")], ids=str)
def test_what_does_not_go_together(option: tuple[str, ...], tmp_path: Path) -> None:
    """Other options than these are a wrong usage that says so."""
    environ = {"RECEIVER_DATABASE_URL": f"sqlite:///{tmp_path}/receiver.db", "RECEIVER_KEY": KEY}
    result = CliRunner().invoke(main, ["history", "--follow", *option], env=environ)
    assert result.exit_code == 2
    assert "--follow goes with" in result.output
