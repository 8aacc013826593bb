"""What `make quick` leaves to `make test`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """
import asyncio, contextlib, multiprocessing.util, os, pytest, socket, subprocess
from tests.helpers.quick import service

def test_PASSED(): asyncio.run(asyncio.sleep(0))
def test_SKIPPED(): pytest.skip("for another reason")
def test_LEFT_process(): subprocess.run(["true"])
def test_LEFT_fork(): multiprocessing.get_context("fork").Process(target=print).start()
def test_LEFT_listener(): socket.create_server(("127.0.0.1", 0))
def test_LEFT_service(): service("PostgreSQL")

def test_FAILED_hides_it():
    with contextlib.suppress(BaseException):
        subprocess.run(["true"])

# In a way that the interpreter does not tell of.
def spawned(): return multiprocessing.util.spawnv_passfds(b"/bin/true", ["true"], ())
def test_FAILED_ended_unseen(): os.waitpid(spawned(), 0)
def test_FAILED_still_there(): spawned()
"""


def test_what_is_left(tmp_path: Path) -> None:
    """A test that starts a process or listens is left, and fails where that is hidden; others pass."""
    (tmp_path / "test_one.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--quick", "--verbose", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    outcomes = re.findall(r"::test_([A-Z]+)\w* (PASSED|SKIPPED|LEFT|FAILED) ", done.stdout)
    assert len(outcomes) == TESTS.count("def test_"), done.stdout
    assert all(expected == outcome for expected, outcome in outcomes), done.stdout
