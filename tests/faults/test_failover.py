"""Failover to a standby: nothing that was acknowledged is lost, whatever the standby had and the old primary does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from receiver.delivery import Delivery
from tests.helpers.line import Line, body, delivery, started
from tests.helpers.load import Load, Receiver, ended
from tests.helpers.outcome import Trial, compare
from tests.helpers.pages import blocks
from tests.helpers.receiver import KEY, wait_until
from tests.helpers.replication import ROLE, Cluster, Node, url_of

LONG = 3600  # seconds to keep what is stored


def numbered(first: int, last: int) -> list[Delivery]:
    return [delivery(body(state="CONNECTED", job_id=f"job-{at}"), at) for at in range(first, last)]


def jobs(first: int, last: int) -> list[str]:
    return [f"job-{at}" for at in range(first, last)]


def store(line: Line, first: int, last: int) -> None:
    """Store events, and offer to the end what was kept."""
    line.put_each(*numbered(first, last))
    line.drain()
    wait_until(lambda: line.metric("database_up") == 1 and line.feeder._kept_sent is None, "an end")  # noqa: SLF001
    line.drain()


def url_of_the_guide(cluster: Cluster) -> str:
    """The URL that docs/how-to/postgresql-failover.md shows, with the names of these servers."""
    (block,) = blocks("docs/how-to/postgresql-failover.md", "Name all servers", language="text")
    url = block.text.strip().replace("metastudio:change-me@", f"{ROLE}@")
    for name, node in (("db1:5432", cluster.first), ("db2:5432", cluster.second)):
        assert name in url
        url = url.replace(name, f"127.0.0.1:{node.port}")
    return url


@pytest.mark.parametrize("keep", [LONG, 0])
def test_asynchronous_standby_that_lags(cluster: Cluster, tmp_path: Path, keep: int) -> None:
    """What the standby had not got when it was promoted is stored again from what was kept; without that it is lost."""
    primary, standby = cluster.first, cluster.second
    with started(tmp_path, url_of_the_guide(cluster), keep) as line:
        store(line, 0, 10)
        standby.wait_for(primary)
        standby.disconnect()
        store(line, 10, 30)
        assert (primary.jobs(), standby.jobs()) == (jobs(0, 30), jobs(0, 10))
        primary.kill()
        line.put_each(*numbered(30, 35))
        standby.promote()
        store(line, 35, 40)
        assert standby.jobs() == jobs(0, 10) + (jobs(10, 30) if keep else []) + jobs(30, 40)
        assert line.metric("events_restored_total") == (20 if keep else 0)


def test_synchronous_standby(cluster: Cluster, tmp_path: Path) -> None:
    """With a synchronous standby nothing is lost without keeping, also when the old primary comes back as a standby."""
    old, new = cluster.first, cluster.second
    cluster.first.require_standby()
    with started(tmp_path, cluster.url) as line:
        store(line, 0, 10)
        old.kill()
        new.promote()
        store(line, 10, 20)
        old.rewind(new)
        old.start()
        old.wait_for(new)
        new.require_standby()
        store(line, 20, 30)
        new.kill()
        old.promote()
        store(line, 30, 40)
        assert old.jobs() == jobs(0, 40)


@contextmanager
def split_brain(cluster: Cluster, folder: Path, keep: int) -> Iterator[Line]:
    """The standby was promoted, the old primary came back as a primary too, and the receiver stored into both."""
    old, new = cluster.first, cluster.second
    with started(folder, cluster.url, keep) as line:
        store(line, 0, 10)
        new.wait_for(old)
        old.kill()
        new.promote()
        store(line, 10, 20)
        assert new.jobs() == jobs(0, 20)
        old.start()
        new.end_sessions()
        store(line, 20, 30)
        assert old.jobs()[-10:] == jobs(20, 30)
        yield line


def test_split_brain_and_what_is_kept(cluster: Cluster, tmp_path: Path) -> None:
    """What went to the other primary is stored again in each to which the receiver comes back."""
    with split_brain(cluster, tmp_path, LONG) as line:
        assert cluster.first.jobs() == jobs(0, 30)
        cluster.first.kill()
        store(line, 30, 40)
        assert cluster.second.jobs() == jobs(0, 40)


def test_split_brain_and_copy(cluster: Cluster, tmp_path: Path) -> None:
    """What was not kept long enough is on one of the primaries: `receiver copy` brings it into the other."""
    old, new = cluster.first, cluster.second
    with split_brain(cluster, tmp_path, 0) as line:
        assert (old.jobs(), new.jobs()) == (jobs(0, 10) + jobs(20, 30), jobs(0, 20))
        copied = copy(old, new)
        assert copied == "Copied 10 events and 0 quarantined that were not there yet.\n"
        assert line.metric("events_restored_total") == 0
        old.kill()
        store(line, 30, 40)
        assert new.jobs() == jobs(0, 40)


def kill(primary: Node) -> None:
    primary.kill()


def freeze(primary: Node) -> None:
    primary.freeze()


# A frozen server does not refuse: the receiver's own deadlines end what it waits for, which takes longer.
WAYS = [kill, freeze] if "FAULT_FAILOVERS" in os.environ else [kill]


@pytest.mark.parametrize("end", WAYS, ids=lambda end: end.__name__)
def test_failovers_under_load(cluster: Cluster, tmp_path: Path, trial: Trial, end: Callable[[Node], None]) -> None:
    """A primary that is away a moment after its standby was cut off, under load, loses nothing that was kept."""
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=url_of_the_guide(cluster))
    load = Load([receiver])
    primary, standby = cluster.first, cluster.second
    seconds = []
    with ended(receiver):
        receiver.start()
        with load.running():
            for _ in range(trial.times):
                load.wait_for(50)
                standby.disconnect()
                wait_for_more(primary, 50)
                end(primary)
                standby.promote()
                promoted = time.monotonic()
                wait_for_more(standby, 1)
                seconds.append(time.monotonic() - promoted)
                load.wait_for(50)
                primary.kill()
                primary.rewind(standby)
                primary.start()
                primary.wait_for(standby)
                primary, standby = standby, primary
        trial.record(compare(f"failover, primary: {end.__name__}", load, runs=trial.times))
        assert receiver.metric("events_restored_total") >= 50 * trial.times
        assert load.refused == 0
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log
    figures = ", ".join(f"{one:.1f}" for one in seconds)
    trial.remark(f"failover, {end.__name__}: seconds from the promotion to the first stored: {figures}")


def wait_for_more(node: Node, more: int) -> None:
    """Wait until so many more events than now are stored there."""
    wanted = len(node.jobs()) + more
    wait_until(lambda: len(node.jobs()) >= wanted, f"{more} more events")


def copy(source: Node, target: Node) -> str:
    """What `receiver copy` says."""
    command = [sys.executable, "-m", "receiver", "copy", "--from", url_of(source)]
    endpoint = {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": "https://receiver/", "RECEIVER_KEY": KEY}
    environ = endpoint | {"RECEIVER_DATABASE_URL": url_of(target)}
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
