from __future__ import annotations

import os
from pathlib import Path

import pytest

from receiver.projector import feeder
from tests.helpers.line import Logs

DEADLY = """
import os, signal
from receiver.database import database, rows

def or_die(work):
    def wrapped(*arguments, **options):
        if b"deadly" in repr(arguments).encode():
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments, **options)
    return wrapped

"""


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Logs:
    """What this process and the worker's have logged."""
    return Logs(caplog, capfd)


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the worker die in a function when it is given what contains "deadly"."""
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(DEADLY + f"{request.param} = or_die({request.param})")
    monkeypatch.setenv("PYTHONPATH", str(patched), prepend=os.pathsep)
    monkeypatch.setattr(feeder, "_LONGEST_PAUSE", 0.1)
