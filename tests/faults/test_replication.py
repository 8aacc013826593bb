"""PostgreSQL with a standby: an event leaves the journal only where the commit is as durable as the server is set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from receiver.cli import main
from receiver.delivery import Delivery
from tests.helpers.line import Line, body, delivery, started
from tests.helpers.receiver import KEY, wait_until
from tests.helpers.replication import (
    DATABASE,
    ROLE,
    Cluster,
    Node,
    new_primary,
    url_of,
)

LONG = 3600


def numbered(first: int, last: int) -> list[Delivery]:
    return [delivery(body(state="CONNECTED", job_id=f"job-{at}"), at) for at in range(first, last)]


def jobs(first: int, last: int) -> list[str]:
    return [f"job-{at}" for at in range(first, last)]


def assert_kept(line: Line, primary: Node) -> None:
    """A commit waits for the standby, and the event waits for that in the journal."""
    wait_until(lambda: primary.waiting_for_standby() or not line.metric("journal_events"), "a commit")
    assert line.metric("journal_events") == 1


def failures(line: Line) -> float:
    """How many attempts to store have failed."""
    return sum(line.metric("projector_errors_total", reason=one) for one in ("connection", "other"))


def assert_tried_again(line: Line, primary: Node, end: Callable[[], object]) -> None:
    """Ended like this, an attempt to store is a failure, and the next one waits for the standby as it did."""
    before = failures(line)
    end()
    wait_until(lambda: failures(line) > before or not line.metric("journal_events"), "a failure")
    assert_kept(line, primary)


@pytest.mark.parametrize("level", ["on", "remote_write", "remote_apply"])
def test_commit_that_no_standby_has(cluster: Cluster, tmp_path: Path, level: str, failed_attempts: int) -> None:
    """While the synchronous standby is frozen, no way to end the commit's wait takes the event from the journal."""
    primary, standby = cluster.first, cluster.second
    cluster.first.require_standby()
    primary.sql(f"ALTER ROLE {ROLE} SET synchronous_commit = {level}")
    # Which may not hide what PostgreSQL says of such a commit.
    primary.sql(f"ALTER ROLE {ROLE} SET client_min_messages = error")
    with started(tmp_path, cluster.url) as line:
        wait_until(lambda: line.metric("database_up") == 1, "a database")
        standby.freeze()
        line.put(*numbered(0, 1))
        assert_kept(line, primary)
        wait_until(lambda: failures(line) >= failed_attempts, "attempts that end at the receiver's deadline")
        assert_kept(line, primary)
        assert_tried_again(line, primary, lambda: primary.end_sessions("pg_cancel_backend"))
        assert primary.jobs() == jobs(0, 1)  # visible, on the primary alone
        assert_tried_again(line, primary, primary.end_sessions)
        assert_tried_again(line, primary, primary.restart)
        standby.thaw()
        line.drain()
        primary.kill()
        standby.promote()
        assert standby.jobs() == jobs(0, 1)


def test_level_is_not_lowered(cluster: Cluster, tmp_path: Path) -> None:
    """With remote_apply an event leaves the journal only where queries on the standby show it."""
    primary, standby = cluster.first, cluster.second
    cluster.first.require_standby()
    primary.sql(f"ALTER ROLE {ROLE} SET synchronous_commit = remote_apply")
    standby.sql("SELECT pg_wal_replay_pause()")
    with started(tmp_path, cluster.url) as line:
        line.put(*numbered(0, 1))
        assert_kept(line, primary)
        standby.sql("SELECT pg_wal_replay_resume()")
        line.drain()
        assert standby.jobs() == jobs(0, 1)


def test_level_local_is_a_choice(cluster: Cluster, tmp_path: Path) -> None:
    """With local no commit waits for the frozen standby; off is raised, so that each does."""
    primary, standby = cluster.first, cluster.second
    cluster.first.require_standby()
    primary.sql(f"ALTER ROLE {ROLE} SET synchronous_commit = local")
    standby.freeze()
    with started(tmp_path, cluster.url) as line:
        line.put(*numbered(0, 1))
        line.drain()
        primary.sql(f"ALTER ROLE {ROLE} SET synchronous_commit = off")
        primary.end_sessions()
        line.put(*numbered(1, 2))
        assert_kept(line, primary)


def test_commands_that_read(cluster: Cluster) -> None:
    """`history` and `report` can ask the standby."""
    url = cluster.second.url.set(database=DATABASE).render_as_string(hide_password=False)
    environ = {"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": url}
    for command in ("history", "report"):
        done = CliRunner().invoke(main, [command], env=environ)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("whose", [f"ROLE {ROLE}", f"DATABASE {DATABASE}"])
def test_kill_with_asynchronous_commits(template: Node, tmp_path: Path, whose: str) -> None:
    """With synchronous_commit off, kill -9 of the whole server loses nothing that has left the journal."""
    with new_primary(template) as primary:
        primary.sql(f"ALTER {whose} SET synchronous_commit = off")
        # What writes such commits to the disk a moment later does not get to it.
        ((writer,),) = primary.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
        os.kill(writer, signal.SIGSTOP)
        with started(tmp_path, url_of(primary)) as line:
            line.put_each(*numbered(0, 50))
            line.drain()
            primary.kill()
            primary.start()
            assert primary.jobs() == jobs(0, 50)
