from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from tests.helpers.stack import Stack, stack


@pytest.fixture(scope="package")
def monitored(tmp_path_factory: pytest.TempPathFactory, postgresql_server: URL) -> Iterator[Stack]:
    """A receiver, PostgreSQL and Prometheus after three livestreams. Tests only read."""
    with stack(tmp_path_factory.mktemp("monitored"), postgresql_server) as running:
        yield running
