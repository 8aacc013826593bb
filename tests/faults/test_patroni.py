"""Patroni changes the leader under load, with synchronous_mode_strict: nothing that was acknowledged is lost.

For `make faults`: conftest.py leaves this file out where FAULT_FAILOVERS is not set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.load import Load, Receiver, ended
from tests.helpers.outcome import Trial, compare
from tests.helpers.patroni import Member, PatroniCluster, new_patroni_cluster
from tests.helpers.receiver import wait_until
from tests.helpers.replication import sql


@pytest.fixture(scope="module")
def cluster() -> Iterator[PatroniCluster]:
    with new_patroni_cluster() as created:
        yield created


def switchover(cluster: PatroniCluster, _: Member) -> None:
    cluster.switch_over()


def failover(_: PatroniCluster, leader: Member) -> None:
    leader.kill()


def stored(member: Member) -> int:
    count: int = sql(member.url, "SELECT count(*) FROM events")[0][0]
    return count


@pytest.mark.parametrize("change", [switchover, failover], ids=lambda change: change.__name__)
def test_change_of_leader(
    cluster: PatroniCluster, tmp_path: Path, trial: Trial, change: Callable[[PatroniCluster, Member], None]
) -> None:
    """After a switchover, and after a failover from a leader that was killed, all that was acknowledged is there."""
    # Nothing is kept: the standbys alone see to it.
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=cluster.url, RECEIVER_JOURNAL_KEEP="0")
    load = Load([receiver])
    seconds = []
    with ended(receiver):
        receiver.start()
        with load.running():
            for _ in range(trial.times):
                before = cluster.wait_until_whole()
                wait_until(lambda: receiver.metric("database_up") == 1, "a database", 120)
                load.wait_for(100)
                change(cluster, before)
                after = cluster.wait_for_another_than(before)
                promoted, count = time.monotonic(), stored(after)
                wait_until(lambda after=after, count=count: stored(after) > count, "another event", 180)  # type: ignore[misc]
                seconds.append(time.monotonic() - promoted)
                load.wait_for(100)
                assert load.refused == 0
                if change is failover:
                    before.start()
        wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal", 180)
        trial.record(compare(f"Patroni, {change.__name__}", load, runs=trial.times))
        trial.remark(
            f"Patroni, {change.__name__}: seconds from another leader to the first stored: {in_words(seconds)}"
        )
        assert receiver.metric("events_restored_total") == 0
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log


def in_words(seconds: list[float]) -> str:
    return ", ".join(f"{one:.1f}" for one in seconds)
