"""The commands of the pages on the platform, as they stand there, against the stub."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.protocol.platform import Finding
from tests.helpers.locks import PLATFORM, ROOT
from tests.helpers.pages import blocks, code, rows, section
from tests.helpers.platform import Stub, platform
from tests.helpers.receiver import running, wait_until
from tests.helpers.shell import run

URL = "https://events.example.com/callbacks/metastudio"
SETTINGS = {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL, "RECEIVER_KEY": "0123456789abcdefThis-Is-The-Key"}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with platform() as started:
        yield started


def here(stub: Stub, script: str) -> str:
    """A script with the stub in place of the region."""
    assert "--region cn-north-4" in script
    return script.replace("--region cn-north-4", f"--api-endpoint {stub.url}")


def test_what_is_installed() -> None:
    """What is installed beside the receiver is the lock file of the SDK."""
    (block,) = blocks("docs/how-to/register.md", "What it needs")
    command = shlex.split(block.text)
    assert (ROOT / PLATFORM).is_file()
    assert command[1:] == ["install", "--require-hashes", "--no-deps", "-r", PLATFORM]


def test_register(stub: Stub, tmp_path: Path) -> None:
    """The first command changes nothing, the second registers, the third compares a room."""
    compare, room = blocks("docs/how-to/register.md", "Compare, then write")
    shown = run(here(stub, compare.text), tmp_path, stub.environ | SETTINGS)
    assert shown.count("live_event_type_callback_url: not set") == 2
    assert stub.config["live_event_callback_config"]["live_event_type_callback_url"] == URL
    stub.rooms[room.text.split()[-1]] = {}
    assert "not set" in run(here(stub, room.text), tmp_path, stub.environ | SETTINGS)


def test_reconcile(stub: Stub, tmp_path: Path) -> None:
    """Both commands look at the platform's jobs, beside a running receiver."""
    (block,) = blocks("docs/how-to/reconcile.md", "What it needs")
    with running(tmp_path) as receiver:
        receiver.rows("SELECT 1")  # once there is a database
        shown = run(here(stub, block.text), tmp_path, stub.environ | receiver.environ)
        assert "Looked at 0 jobs" in shown
        assert '"end_missing": 0' in shown
        wait_until(lambda: receiver.metric("platform_checked_timestamp_seconds") > 0, "the time of the run")


def test_each_finding_is_described() -> None:
    """The page has each finding, and no other."""
    assert [code(cells[0])[0] for cells in rows(section("docs/how-to/reconcile.md", "What is found"))] == [*Finding]
