"""The status page while PostgreSQL does not answer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from receiver.database.database import Database
from tests.helpers.postgres import PrivatePostgreSQL, new_database
from tests.helpers.receiver import SAMPLES, Answer, Process, running, wait_until

SAMPLE = SAMPLES["RTMP_STREAM_STATE_CHANGE"]
JOB = "/jobs/e87104f76d7546ce8a46ac6b04c49c3c"


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgreSQL]:
    """A server that may be frozen."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        private = PrivatePostgreSQL(Path(folder))
        private.start()
        yield private
        private.stop()


@pytest.fixture
def receiver(tmp_path: Path, server: PrivatePostgreSQL) -> Iterator[Process]:
    """A receiver with the page that has stored an event."""
    with new_database(server.url) as url:
        with closing(Database(url)) as database:
            database.migrate()
        with running(tmp_path, RECEIVER_DATABASE_URL=url, RECEIVER_STATUS_PAGE="true") as process:
            assert process.post(SAMPLE).status == 200
            wait_until(lambda: process.metric("journal_events") == 0, "the event in the database")
            assert b"e87104f76d7546ce8a46ac6b04c49c3c" in process.operations("/").body
            yield process


def test_frozen_database(receiver: Process, server: PrivatePostgreSQL) -> None:
    """The page comes in time and says so, /metrics and /readyz do not wait for it, and thawed it has all again.

    SIGTERM ends the receiver in order while a page waits.
    """
    server.freeze()
    try:
        with ThreadPoolExecutor(4) as browsers:
            began = time.monotonic()
            pages = [browsers.submit(receiver.operations, JOB) for _ in range(4)]
            for path in ("/readyz", "/metrics"):
                assert receiver.operations(path).status == 200
            assert not any(one.done() for one in pages), "they wait for the database"
            answers = [one.result() for one in pages]
        assert time.monotonic() - began < 10  # two seconds, on a machine that is not busy
        for one in answers:
            assert one.status == 503
            assert b"did not answer" in one.body
        said: Answer = wait_until(lambda: without_database(receiver), "what was read before is not shown for long")
        assert b"Callbacks are taken" in said.body
        assert receiver.post(SAMPLE).status == 200
    finally:
        server.thaw()
    wait_until(lambda: receiver.operations(JOB).status == 200, "the job's page")
    wait_until(lambda: not without_database(receiver), "the whole page")
    server.freeze()
    try:
        with ThreadPoolExecutor(1) as browser:
            page = browser.submit(receiver.operations, "/jobs/another")
            wait_until(lambda: without_database(receiver), "the outage")
            assert receiver.stop() == 0
            assert page.exception() is not None or page.result().status == 503
    finally:
        server.thaw()


def without_database(receiver: Process) -> Answer | None:
    """The page, if it says that the database did not answer."""
    answer = receiver.operations("/")
    assert answer.status == 200
    return answer if b"did not answer" in answer.body else None
