"""The rule of `make quick`: what starts a process, listens on a socket, needs PostgreSQL or computes for long is left.

No test is marked or listed for it. With `--quick` each test runs until it does such a thing, and is skipped there.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Generator

import pytest

_SERVICE = "tests.service"
# Events of the interpreter itself, whatever causes them (PEP 578).
_REFUSED = frozenset({_SERVICE, "subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "os.exec", "socket.bind"})


def service(name: str) -> None:
    """Say that a test needs the service `name`, where the interpreter does not see it or much is done before."""
    sys.audit(_SERVICE, name)


def computes() -> None:
    """Say that a test computes for a second or more."""
    service("a second of computing")


class Status:
    """A pytest plugin that counts what is left apart from what is skipped for another reason."""

    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
        """Name it."""
        left = report.skipped and "is for `make test`" in str(report.longrepr)
        return ("left to make test", "", "LEFT") if left else None


class Quick(Status):
    """A pytest plugin that skips a test at its first start of a process or listening socket."""

    def __init__(self) -> None:
        self._refused = ""
        self._faults = 0

    def _audit(self, event: str, _: tuple[object, ...]) -> None:
        if event in _REFUSED:
            self._refused = event
            # Not an Exception, so that neither the test nor what it tests handles it.
            pytest.skip(f"{event} is for `make test`")

    def pytest_collection_finish(self) -> None:
        """Refuse from here on, and keep the garbage collector from looking through all that was imported."""
        self._faults = _page_faults_of_children()
        sys.addaudithook(self._audit)
        gc.freeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail a test that went on after it was refused, or that started a process in a way that is not seen."""
        report = yield
        refused, self._refused = self._refused, ""
        faults, self._faults = self._faults, _page_faults_of_children()
        wrong = ""
        if refused and report.passed:
            wrong = f"it went on where {refused} was refused"
        if faults != self._faults or _has_children():
            wrong = "it started a process unseen: call tests.helpers.quick.service before"
        if wrong:
            report.outcome, report.longrepr = "failed", wrong
        return report


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _page_faults_of_children() -> int:
    """Grows with each process that this one started and that ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
