from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.receiver import Process, running


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A running receiver, for all tests of a module."""
    with running(tmp_path_factory.mktemp("receiver")) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log
