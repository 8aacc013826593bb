"""Each SQL statement of the dashboards, as Grafana sends it, to a real PostgreSQL after the livestreams.

As the read-only role, so that each of them needs no more than that one may.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.grafana import POSTGRESQL, Query, Selection, expand_sql, queries
from tests.helpers.stack import DOWN, ROOM_NAME, STORED, UP, Stack

SQL = {query.name: query for query in queries() if query.data_source == POSTGRESQL}
OUTAGE = pytest.approx(16.8, abs=1.01)  # of the simulated livestream; callbacks are signed in whole seconds
Rows = list[dict[str, Any]]


def ask(monitored: Stack, name: str, began: float = -3600, ended: float = 60, **values: list[str]) -> Rows:
    """What the query named `name` gives for a time range in seconds from when the sending began."""
    first, last = (datetime.fromtimestamp(monitored.began_at + offset, UTC) for offset in (began, ended))
    return monitored.rows(expand_sql(SQL[name], Selection(first, last, values)))


def room_of(monitored: Stack, job: str) -> Any:
    """The id of a job's room, of which no name is known."""
    (row,) = monitored.rows(f"SELECT room_id FROM live_jobs WHERE job_id = '{job}'")
    return row["room_id"]


def seconds(value: Any) -> Any:
    """A duration as a number that can be compared with an approximate one."""
    return float(value)


def test_jobs_by_state(monitored: Stack) -> None:
    """One job is on air, one is not, and one has ended."""
    assert ask(monitored, "Jobs by state A") == [{"on air": 1, "not on air": 1, "stale": 0, "ended": 1}]
    assert ask(monitored, "Jobs by state A", job=[DOWN.job_id]) == [
        {"on air": 0, "not on air": 1, "stale": 0, "ended": 0}
    ]


def test_mean_time_to_reconnect(monitored: Stack) -> None:
    """Of two outages with an end, the one of the simulated job and one of ten seconds."""
    (row,) = ask(monitored, "Mean time to reconnect A")
    assert seconds(row["mean"]) == pytest.approx((16.8 + 10) / 2, abs=1)
    assert ask(monitored, "Mean time to reconnect A", job=[UP.job_id]) == [{"mean": None}]


def test_replies(monitored: Stack) -> None:
    """The simulated job's five replies, in all and by the hour."""
    assert ask(monitored, "Replies A") == [{"replies": 5}]
    hours = ask(monitored, "Replies an hour A")
    assert sum(row["replies"] for row in hours) == 5
    assert all(row["time"] % 3600 == 0 and abs(seconds(row["time"]) - monitored.began_at) < 7200 for row in hours)


def test_states_by_job(monitored: Stack) -> None:
    """Each job's states, in order."""
    rows = ask(monitored, "States by job A")
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    states = {job: [row["state"] for row in rows if row["job"] == job] for job in {row["job"] for row in rows}}
    assert states == {
        monitored.ended_job: ["CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING", "CONNECTED", "END"],
        **{live.job_id: [state for _, state in live.states] for live in (UP, DOWN)},
    }


def test_a_state_from_before_the_chosen_time(monitored: Stack) -> None:
    """A job's state from before the chosen time is drawn from its beginning on; an ended one has none."""
    rows = ask(monitored, "States by job A", began=-50, job=[UP.job_id, DOWN.job_id])
    start = datetime.fromtimestamp(monitored.began_at - 50, UTC)
    assert {(row["job"], row["state"], row["time"]) for row in rows} == {
        (UP.job_id, "CONNECTED", start),
        (DOWN.job_id, "RECONNECTING", start),
    }
    changed = ask(monitored, "States by job A", began=-170, job=[DOWN.job_id])
    assert [row["state"] for row in changed] == [state for _, state in DOWN.states]
    assert changed[0]["time"] == datetime.fromtimestamp(monitored.began_at - 170, UTC)
    assert ask(monitored, "States by job A", began=30, job=[monitored.ended_job]) == []


def test_jobs(monitored: Stack) -> None:
    """One row a job, with its state and its counts; the latest change first."""
    rows = ask(monitored, "Jobs A")
    assert [row["since"] for row in rows] == sorted((row["since"] for row in rows), reverse=True)
    assert {row["job"]: [row[name] for name in ("state", "reconnects", "paragraphs", "replies")] for row in rows} == {
        monitored.ended_job: ["END", 1, 18, 5],
        UP.job_id: ["CONNECTED", 0, 2, 0],
        DOWN.job_id: ["RECONNECTING", 1, 1, 0],
    }
    (ended,) = (row for row in rows if row["job"] == monitored.ended_job)
    assert ended["connected"] == pytest.approx(93.6 + 127.2, abs=2)
    assert (ended["last event"] - ended["first event"]).total_seconds() == pytest.approx(240, abs=1)
    assert sum(row["events"] for row in rows) == STORED
    assert {row["job"]: row["room"] for row in rows if row["job"] != monitored.ended_job} == {
        UP.job_id: ROOM_NAME,
        DOWN.job_id: ROOM_NAME,
    }
    assert ended["room"] == room_of(monitored, monitored.ended_job)


def test_outages(monitored: Stack) -> None:
    """Three outages and the time before two first connections, the latest first: one goes on."""
    asked = time.time()
    rows = ask(monitored, "Outages A")
    answered = time.time()
    assert [row["from"] for row in rows] == sorted((row["from"] for row in rows), reverse=True)
    going_on, *others = [row for row in rows if row["job"] == DOWN.job_id]
    assert going_on["to"] is None
    so_far = seconds(going_on["duration"]) - 100  # before the sending began
    assert asked - monitored.began_at <= so_far <= answered - monitored.began_at + 1
    assert [(seconds(row["duration"]), row["began with"]) for row in others] == [
        (pytest.approx(10, abs=1), "RECONNECTING")
    ]
    assert going_on["was on"] == ""
    lost, before = [row for row in rows if row["job"] == monitored.ended_job]
    assert (seconds(lost["duration"]), lost["began with"]) == (OUTAGE, "DISCONNECTED")
    assert re.fullmatch(r".+ · \d+ · .+", lost["was on"])
    assert (before["began with"], before["was on"]) == ("CONNECTING", "")
    (first,) = [row for row in rows if row["job"] == UP.job_id]
    assert (seconds(first["duration"]), first["began with"]) == (pytest.approx(2, abs=1), "CONNECTING")
    assert len(rows) == 5
    assert (first["room"], lost["room"]) == (ROOM_NAME, room_of(monitored, monitored.ended_job))


def test_downtime(monitored: Stack) -> None:
    """The downtime within the chosen time: before a connection, by an outage, and what the lost one has so far."""
    rows = {row["job"]: seconds(row["downtime"]) for row in ask(monitored, "Downtime by job A", ended=0)}
    assert rows == {
        DOWN.job_id: pytest.approx(10 + 100, abs=2),
        monitored.ended_job: pytest.approx(16.8 + 2.4, abs=2.02),
        UP.job_id: pytest.approx(2, abs=1),
    }
    clipped = ask(monitored, "Downtime by job A", began=-60, ended=0)
    assert [(row["job"], seconds(row["downtime"])) for row in clipped] == [(DOWN.job_id, pytest.approx(60, abs=0.01))]


def test_reconnects(monitored: Stack) -> None:
    """Both jobs that lost their connection were connected again once."""
    rows = ask(monitored, "Reconnects by job A")
    assert {row["job"]: row["reconnects"] for row in rows} == {monitored.ended_job: 1, DOWN.job_id: 1}


def test_script_by_job(monitored: Stack) -> None:
    """Each job's paragraphs in order; after the end there is none."""
    rows = ask(monitored, "Script by job A")
    played = [row["paragraph"] for row in rows if row["job"] == monitored.ended_job]
    assert played[:3] == ["春季新茶 · 1 · 开场介绍", "春季新茶 · 2 · 产品特点", "春季新茶 · 3 · 限时优惠"]
    assert len(played) == 19
    assert played[-1] is None
    assert [row["paragraph"] for row in rows if row["job"] == UP.job_id] == [
        "商品1 · 1 · 段落1",
        "商品1 · 1 · 段落2",
    ]


def test_most_played_paragraphs(monitored: Stack) -> None:
    """Ten paragraphs, each played twice: by the script's two rounds, or by two jobs; and one played once."""
    rows = ask(monitored, "Most played paragraphs A")
    assert Counter(row["plays"] for row in rows) == {2: 10, 1: 1}
    (tea,) = (row for row in rows if (row["scene"], row["number"]) == ("春季新茶", 1))
    assert tea["paragraph"] == "开场介绍"
    assert tea["played"] == pytest.approx(2 * 240 * 0.95 / 18, abs=2.01)


def test_minutes_on_air_by_product(monitored: Stack) -> None:
    """The one product that was named was on for a minute, by the one job that named it."""
    (row,) = ask(monitored, "Minutes on air by product A")
    assert (row["product"], row["title"], row["jobs"]) == ("42", "春季新茶", 1)
    assert seconds(row["minutes on air"]) == pytest.approx(1, abs=0.02)
    assert ask(monitored, "Minutes on air by product A", job=[DOWN.job_id]) == []


def test_sql_variables(monitored: Stack) -> None:
    """Rooms and jobs of the chosen time; of a chosen room its jobs alone. A room is seen by its name too."""
    other = room_of(monitored, monitored.ended_job)
    assert [(row["__text"], row["__value"]) for row in ask(monitored, "variable room")] == [
        (f"{ROOM_NAME} · {UP.room_id}", UP.room_id),
        (other, other),
    ]
    jobs = [row["job_id"] for row in ask(monitored, "variable job")]
    assert set(jobs) == {monitored.ended_job, UP.job_id, DOWN.job_id}
    assert [row["job_id"] for row in ask(monitored, "variable job", room=[DOWN.room_id])] == [DOWN.job_id, UP.job_id]


def test_annotations(monitored: Stack) -> None:
    """The outages as regions: each with both ends, and what happened to which job."""
    rows = ask(monitored, "annotation Outages")
    assert len(rows) == 5
    assert all(row["time"] <= row["timeend"] for row in rows)
    assert rows[0]["text"] == f"DISCONNECTED, job {DOWN.job_id}, {ROOM_NAME}"
    assert f"DISCONNECTED, job {monitored.ended_job}" in [row["text"] for row in rows]
    assert rows[0]["tags"] == DOWN.room_id


@pytest.mark.parametrize("query", SQL.values(), ids=SQL)
def test_jobs_are_read_one_by_one(query: Query) -> None:
    """A view that counts a job's events is asked for one job at a time, else all of its rows are computed for a few."""
    for condition in re.findall(r"FROM live_jobs\b(.*?)(?=\)|--)", query.text, flags=re.DOTALL):
        assert re.fullmatch(r" WHERE live_jobs\.job_id = (jobs|stream_outages)\.job_id OFFSET 0", condition)


def test_each_statement_is_checked() -> None:
    """No statement of a dashboard is without a test of its data above."""
    tests = Path(__file__).read_text()
    assert {name for name in SQL if f'"{name}"' not in tests} == set()


@pytest.mark.parametrize("query", SQL.values(), ids=SQL)
def test_statements_for_a_choice(monitored: Stack, query: Query) -> None:
    """A statement for a chosen room and job tells of nothing else; where nothing was sent, it is empty and no error."""
    chosen = ask(monitored, query.name, room=[DOWN.room_id], job=[DOWN.job_id])
    others = (monitored.ended_job, UP.job_id)
    if query.name != "variable room":
        assert not any(other in str(chosen) for other in others[: 1 if query.name == "variable job" else 2])
    for nothing in (ask(monitored, query.name, -1e8, -0.9e8), ask(monitored, query.name, job=["it's"], room=["''"])):
        if query.name != "variable room":
            assert all(not value for row in nothing for value in row.values())
