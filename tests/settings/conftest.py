"""Each test of the settings is in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of our own to be in: receiver.toml is looked for here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
