"""Three receivers, each with its own journal, on one PostgreSQL."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, select

from receiver.database.schema import events, streams
from tests.helpers.load import Load, Receiver, ended, held, state_body
from tests.helpers.outcome import Outcome, compare, drained
from tests.helpers.receiver import wait_until

Record = Callable[[Outcome], None]
URL = "https://receivers.example/callbacks/metastudio"  # the one that is registered, whoever takes the callback


@contextmanager
def fleet(folder: Path, database_url: str) -> Iterator[list[Receiver]]:
    """Three that run."""
    receivers = []
    for number in range(3):
        own = folder / str(number)
        own.mkdir()
        settings = {"RECEIVER_DATABASE_URL": database_url, "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL}
        receivers.append(Receiver(own, tls=True, **settings))
    receivers[0].migrate()
    with ended(*receivers):
        for receiver in receivers:
            receiver.start()
        yield receivers


def errors(receiver: Receiver) -> float:
    """How many attempts at the database have failed."""
    return sum(value for (name, _), value in receiver.metrics().items() if name == "projector_errors_total")


def check_streams(database_url: str, jobs: int) -> None:
    """Each job's row is its newest state in the order of its events; where several are the newest, one of them."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        all_states = select(events.c.job_id, events.c.sent_at, events.c.received_at, events.c.state)
        states = [tuple(row) for row in connection.execute(all_states)]
        current = select(streams.c.job_id, streams.c.since, streams.c.received_at, streams.c.state)
        found = [tuple(row) for row in connection.execute(current)]
    engine.dispose()
    newest: dict[str, tuple[object, ...]] = {}
    places = {"CONNECTING": 0, "END": 2}
    for row in sorted(states, key=lambda one: (one[1], places.get(one[3], 1), one[2])):
        newest[row[0]] = row[:3]
    assert len(newest) == jobs
    assert sorted(row[:3] for row in found) == sorted(newest.values())
    assert set(found) <= set(states)


def duplicates(receiver: Receiver) -> float:
    """How many repeats it has counted."""
    return receiver.metric("events_total", "default", "RTMP_STREAM_STATE_CHANGE", "duplicate")


def test_fleet_shares_a_database(tmp_path: Path, postgresql_url: str, record: Record) -> None:
    """Receivers that get the same jobs, and the same events, store each once, without an error and in order."""
    with fleet(tmp_path, postgresql_url) as receivers:
        load = Load(receivers, connections=6, body=state_body)
        load.start(900)
        load.wait()
        assert len(load.acknowledged) == 900
        record(compare("three receivers, one database", load))
        assert [errors(receiver) for receiver in receivers] == [0, 0, 0]
        wait_until(lambda: sum(map(duplicates, receivers)) == 90, "a count of each repeat")
        check_streams(postgresql_url, jobs=7)


def test_kill_in_a_fleet(tmp_path: Path, postgresql_url: str, record: Record) -> None:
    """What one of them kept while it was dead comes late, is not lost, and sets no stream back."""
    with fleet(tmp_path, postgresql_url) as receivers:
        load = Load(receivers, connections=6, body=state_body)
        first, *others = receivers
        with load.running():
            load.wait_for(100)
            with held(postgresql_url):
                load.wait_for(100)
                assert first.metric("journal_events") > 0
                first.stop(signal.SIGKILL)
            load.wait_for(100)
        for receiver in others:
            drained(receiver)
        first.start()
        load.wait_until_accepted(first)
        record(compare("kill -9 of one of three receivers", load))
        check_streams(postgresql_url, jobs=7)
        for receiver in receivers:
            assert receiver.stop() == 0
            assert "Traceback" not in receiver.log
