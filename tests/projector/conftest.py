from __future__ import annotations

import pytest

from tests.helpers.line import Logs


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Logs:
    """What this process and the worker's have logged."""
    return Logs(caplog, capfd)
