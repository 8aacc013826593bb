"""Fixtures for all tests: databases of each kind that is supported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from receiver.database.database import Database
from tests.helpers.postgres import PostgreSQL, new_database
from tests.helpers.quick import Quick, Status, service

_AUTOGROUP = Path("/proc/self/autogroup")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="skip each test where it starts a process or listens")
    parser.addoption("--nothing-skipped", action="store_true", help="fail each test that would be skipped")


def pytest_configure(config: pytest.Config) -> None:
    # The projector's process comes after others (receiver/projector/priority.py): beside tests that keep each processor
    # busy it would hardly run, so these stand back as far.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 10)
        _AUTOGROUP.write_text("10")
    if config.getoption("--quick"):
        is_controller = config.getoption("numprocesses") and not hasattr(config, "workerinput")
        config.pluginmanager.register(Status() if is_controller else Quick())
        # A socket that was refused a bind is not closed by who made it.
        config.addinivalue_line("filterwarnings", "ignore:unclosed <socket:ResourceWarning")


class _Scheduler(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Gives each file to one worker, and all files of a folder whose tests share what takes long to start."""

    def _split_scope(self, nodeid: str) -> str:
        folder = "tests/deploy/monitoring/"
        return folder if nodeid.startswith(folder) else nodeid.partition("::")[0]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the session back its place: it is the terminal's, and what is measured in it next is not to be behind."""
    if not hasattr(config, "workerinput"):
        with suppress(OSError):
            _AUTOGROUP.write_text("0")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduler:
    return _Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # These take longest: one that began last would be waited for alone.
    items.sort(key=lambda item: "faults" not in item.path.parts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With `--nothing-skipped` what a machine lacks is a failure."""
    report = yield
    if report.skipped and item.config.getoption("--nothing-skipped"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def own_postgresql() -> Iterator[PostgreSQL]:
    """A running server for these tests alone: a test that stops it starts it again."""
    # Not in pytest's folder: only its owner may enter that, and a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        server = PostgreSQL(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgresql_server(request: pytest.FixtureRequest) -> URL:
    """Where a PostgreSQL runs on which databases can be created."""
    service("PostgreSQL")
    given = os.environ.get("TEST_DATABASE_URL")
    own: URL = make_url(given) if given else request.getfixturevalue("own_postgresql").url
    return own


@pytest.fixture
def postgresql_url(postgresql_server: URL) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own."""
    with new_database(postgresql_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind that is supported."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/receiver.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def migrated_url(database_url: str) -> str:
    """The URL of a migrated database."""
    with closing(Database(database_url)) as opened:
        opened.migrate()
    return database_url


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    """A migrated database."""
    with closing(Database(migrated_url)) as opened:
        yield opened
