from __future__ import annotations

from collections.abc import Iterator

import pytest

from receiver.storage.database import Database
from tests.postgres import database_url, own_postgresql, postgresql_server, postgresql_url

__all__ = ["database_url", "own_postgresql", "postgresql_server", "postgresql_url"]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()
