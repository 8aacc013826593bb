from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest

from tests.helpers.outcome import Outcome, Trial
from tests.helpers.replication import PROGRAMS, Cluster, Node, new_cluster, new_template

# For `make faults` alone: it takes minutes, and packages that the gate does not need.
collect_ignore = [] if "FAULT_FAILOVERS" in os.environ else ["test_patroni.py"]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Outcome], None]:
    """Takes an outcome into the table at the end of the run, and fails the test unless the promise was kept."""

    def take(outcome: Outcome) -> None:
        # Goes with the test's report, from whichever process runs it.
        request.node.user_properties.append(("outcome", asdict(outcome)))
        outcome.check()

    return take


@pytest.fixture
def remark(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line with figures to print below the table."""
    return lambda line: request.node.user_properties.append(("remark", line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print all outcomes as one table, and the remarks."""
    properties = [
        one
        for found in terminalreporter.stats.values()
        for report in found
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for one in report.user_properties
    ]
    if outcomes := [Outcome(**value) for name, value in properties if name == "outcome" and isinstance(value, dict)]:
        _write_table(terminalreporter, outcomes)
    for name, value in properties:
        if name == "remark":
            terminalreporter.write_line(str(value))


def _write_table(terminalreporter: pytest.TerminalReporter, outcomes: list[Outcome]) -> None:
    names = ("runs", "acknowledged", "stored", "lost", "duplicates")
    width = max(len(outcome.fault) for outcome in outcomes)
    terminalreporter.section("faults")
    terminalreporter.write_line("  ".join(["fault".ljust(width), *names]))
    for one in sorted(outcomes, key=lambda outcome: outcome.fault):
        counts = (one.runs, one.acknowledged, one.stored, len(one.lost), len(one.duplicates))
        cells = [f"{count:>{len(name)}}" for name, count in zip(names, counts, strict=True)]
        terminalreporter.write_line("  ".join([one.fault.ljust(width), *cells]))


@pytest.fixture
def kills() -> int:
    """How many times to kill."""
    return int(os.environ.get("FAULT_KILLS", "20"))


@pytest.fixture
def worker_kills() -> int:
    """How many times to kill the projector's worker."""
    return min(300, int(os.environ.get("FAULT_KILLS", "16")))


@pytest.fixture
def stopped_for() -> float:
    """For how many seconds to stop the projector's worker."""
    return float(os.environ.get("FAULT_STOPPED", "3"))


@pytest.fixture
def power_cuts() -> int:
    """How many times to cut the power."""
    return int(os.environ.get("FAULT_POWER_CUTS", "5"))


@pytest.fixture
def chance() -> random.Random:
    """Randomness whose seed is printed, and can be given again as FAULT_SEED."""
    seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(2**32))
    print(f"FAULT_SEED={seed}")  # noqa: T201 (pytest shows it where the test fails)
    return random.Random(seed)


@pytest.fixture
def trial(record: Callable[[Outcome], None], remark: Callable[[str], None]) -> Trial:
    """How often to have a standby take over."""
    return Trial(int(os.environ.get("FAULT_FAILOVERS", "1")), record, remark)


@pytest.fixture
def failed_attempts() -> int:
    """How many attempts to store have to fail at the receiver's own deadline before anything else happens."""
    return int(os.environ.get("FAULT_ATTEMPTS", "0"))


# Not for the session: at its end a process of pytest-xdist is killed after ten seconds, and would leave the folder.
@pytest.fixture(scope="module", params=PROGRAMS, ids=str)
def template(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A stopped server with the receiver's database, of which clusters are made: of each PostgreSQL to test with."""
    with new_template(request.param) as created:
        yield created


@pytest.fixture
def cluster(template: Node) -> Iterator[Cluster]:
    """A primary and its standby."""
    with new_cluster(template) as created:
        yield created
