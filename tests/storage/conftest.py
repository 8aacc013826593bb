from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.storage.database import Database
from tests.postgres import own_postgresql, postgresql_server, postgresql_url

__all__ = ["own_postgresql", "postgresql_server", "postgresql_url"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind that is supported."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/receiver.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()
