"""deploy/postgres/citus.sql on a plain PostgreSQL with a stub of Citus: its trigger, its grants, and what it covers."""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import ProgrammingError

from receiver.database import schema
from receiver.database.database import Database
from receiver.database.errors import RefusedError
from receiver.database.insert import Row
from tests.helpers.database import sql
from tests.helpers.pages import ROOT, blocks
from tests.helpers.postgres import PrivatePostgreSQL, new_database
from tests.helpers.shell import run

FOLDER = ROOT / "deploy/postgres"
STUB = Path(__file__).parent / "citus_stub.sql"
BY_JOB = schema.metadata.tables.keys() - {"quarantine", "stale_after", "platform_check"}
FAILED = 3  # psql's exit code for an error in a script


class Cluster(NamedTuple):
    """A database that is spread, and one that is not."""

    spread: URL
    plain: URL

    def url(self, role: str) -> str:
        return self.spread.set(username=role).render_as_string(hide_password=False)


def psql(url: URL, *arguments: str | Path, exit_code: int = 0) -> str:
    words = ["psql", "--quiet", "--no-psqlrc", *arguments, url.set(drivername="postgresql").render_as_string()]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == exit_code, done.stdout
    return done.stdout


def migrated(url: URL) -> Database:
    database = Database(url.render_as_string(hide_password=False))
    database.migrate()
    return database


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Set up as citus.sql says, and run again as after an upgrade."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        server = PrivatePostgreSQL(Path(folder))
        server.start()
        for name in ("spread", "plain"):
            psql(server.url, f"--command=CREATE DATABASE {name}")
        made = Cluster(server.url.set(database="spread"), server.url.set(database="plain"))
        psql(made.spread, "--file", STUB)
        psql(made.spread, "--file", FOLDER / "roles.sql")
        for url in (made.spread.set(username="metastudio"), made.plain):
            migrated(url).close()
        (files,) = blocks("docs/how-to/scale-out.md", "On a Citus cluster")
        for _ in range(2):
            run(files.text, ROOT, {"COORDINATOR": made.spread.set(drivername="postgresql").render_as_string()})
        yield made
        server.stop()


def shards(cluster: Cluster, table: str) -> list[Any]:
    """The names of a table's shards, and of which hashes they are."""
    return sql(
        cluster.url("postgres"),
        f"SELECT '{table}_' || shardid AS name, shardminvalue AS low, shardmaxvalue AS high FROM pg_dist_shard"
        f" WHERE logicalrelid = '{table}'::regclass ORDER BY shardid",
    )


def test_each_table_is_covered(cluster: Cluster) -> None:
    """Each table of the schema is spread, those with jobs together; of a small one each node has the whole."""
    rows = sql(
        cluster.url("postgres"), "SELECT logicalrelid::text AS name, partkey, colocationid FROM pg_dist_partition"
    )
    others = {"quarantine": "digest", "stale_after": None, "platform_check": None}
    assert {row["name"]: row["partkey"] for row in rows} == dict.fromkeys(BY_JOB, "job_id") | others
    assert len({row["colocationid"] for row in rows if row["name"] in BY_JOB}) == 1
    assert [len(shards(cluster, table)) for table in ("events", "jobs", "quarantine")] == [8, 8, 8]


def event(job: int, at: datetime, number: int, **columns: Any) -> Row:
    empty = dict.fromkeys(schema.events.columns.keys())
    del empty["id"]
    return {
        **empty,
        "endpoint": "default",
        "event_type": "RTMP_STREAM_STATE_CHANGE",
        "job_id": f"job {job}",
        "sent_at": at,
        "received_at": at,
        "digest": number.to_bytes(4, "big"),
        "state": "CONNECTED",
        "stream_key": "the-stream-key",
        "body": "the-body",
        **columns,
    }


def batches() -> Iterator[list[Row]]:
    """Batches of events of some jobs, in no order, with repeats, and with rooms that are told late or never."""
    chance = random.Random(12)
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    for batch in range(60):
        rows = [
            event(
                chance.randrange(40),
                begin + timedelta(seconds=chance.randrange(86_400)),
                chance.randrange(2000),
                room_id=chance.choice([None, f"room {batch}"]),
            )
            for _ in range(chance.randrange(1, 30))
        ]
        yield list({(row["sent_at"], row["digest"]): row for row in rows}.values())


def store_in_shard(connection: Connection, shard: str, rows: Sequence[Row]) -> None:
    """Store rows in one statement, for which the trigger runs once."""
    names = list(rows[0])
    places = [f"({', '.join(f'%(r{number}_{name})s' for name in names)})" for number in range(len(rows))]
    connection.exec_driver_sql(
        f"INSERT INTO {shard} ({', '.join(names)}) VALUES {', '.join(places)} ON CONFLICT DO NOTHING",
        {f"r{number}_{name}": row[name] for number, row in enumerate(rows) for name in names},
    )


def test_trigger_agrees_with_the_migration(cluster: Cluster) -> None:
    """The same events make the same jobs, whichever shards they are in, each beside its events."""
    # The hash by which Citus spreads text.
    numbered = "SELECT 'job ' || n AS job, hashtext('job ' || n) AS hash FROM generate_series(0, 39) AS n"
    hashes = sql(cluster.url("postgres"), numbered)
    places = [(one["name"], range(int(one["low"]), int(one["high"]) + 1)) for one in shards(cluster, "events")]
    shard_of = {row["job"]: next(name for name, hashed in places if row["hash"] in hashed) for row in hashes}
    engine = create_engine(cluster.url("metastudio_store"))
    with closing(migrated(cluster.plain)) as plain:
        for rows in batches():
            plain.store(rows, [])
            with engine.begin() as connection:
                for shard in sorted({shard_of[row["job_id"]] for row in rows}):
                    store_in_shard(connection, shard, [row for row in rows if shard_of[row["job_id"]] == shard])
    engine.dispose()
    expected = sql(cluster.plain.render_as_string(), "SELECT * FROM jobs")
    assert len(expected) == len(shard_of)
    found = []
    for events, jobs in zip(shards(cluster, "events"), shards(cluster, "jobs"), strict=True):
        assert (events["low"], events["high"]) == (jobs["low"], jobs["high"])
        here = sql(cluster.url("postgres"), f"SELECT * FROM {jobs['name']}")
        assert {shard_of[row["job_id"]] for row in here} <= {events["name"]}
        found += here
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert sql(cluster.url("postgres"), "SELECT * FROM jobs") == []


def test_event_without_a_job_is_refused(cluster: Cluster) -> None:
    """An event without a job has no place, and the database says so: it goes to quarantine."""
    without = event(1, datetime(2026, 3, 1, tzinfo=UTC), 1, job_id=None, state=None)
    with closing(Database(cluster.url("metastudio_store"))) as database, pytest.raises(RefusedError):
        database.store([without], [])


def test_reader_reads_views_with_its_own_rights(cluster: Cluster) -> None:
    """The views can be read where, as on Citus, their tables are read with the rights of who asks; secrets cannot."""
    reader = cluster.url("metastudio_reader")
    for name in schema.views.tables:
        sql(cluster.url("metastudio"), f"ALTER VIEW {name} SET (security_invoker = true)")
        sql(reader, f"SELECT * FROM {name}")
    for statement in ("SELECT body FROM events", "SELECT stream_key FROM events", "SELECT id FROM quarantine"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            sql(reader, statement)


def test_not_with_events_or_without_tables(cluster: Cluster) -> None:
    """A database that has events already, and one that has no tables, is refused with what to do."""
    with new_database(cluster.plain) as url:
        empty = make_url(url)
        psql(empty, "--file", STUB)
        assert "run `receiver migrate` first" in psql(empty, "--file", FOLDER / "citus.sql", exit_code=FAILED)
        with closing(migrated(empty)) as database:
            database.store([event(1, datetime(2026, 3, 1, tzinfo=UTC), 1)], [])
        assert "`receiver copy`" in psql(empty, "--file", FOLDER / "citus.sql", exit_code=FAILED)
        assert sql(empty.render_as_string(), "SELECT * FROM pg_dist_partition") == []
