"""`receiver report`: what happened on each day in each room, against a model in Python and against plain SQL."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.insert import Row
from receiver.database.report import Period, days_of, report
from receiver.database.rows import to_row
from receiver.delivery import Delivery
from tests.helpers.database import sql
from tests.helpers.pages import blocks
from tests.helpers.receiver import KEY

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Event(NamedTuple):
    """What happened in a job: a state, a paragraph's title, or a reply (neither)."""

    at: datetime
    job: str
    room: str | None
    state: str | None = None
    title: str | None = None


def put(database: Database, events: Sequence[Event]) -> None:
    rows = []
    for number, one in enumerate(events):
        message: dict[str, Any] = {"room_id": one.room, "job_id": one.job}
        kind = "REPLY_COMMAND_FINISH"
        if one.state:
            kind, message = "RTMP_STREAM_STATE_CHANGE", message | {"state": one.state}
        elif one.title:
            kind, message = "SHOOT_SCRIPT_SWITCH", message | {"shoot_script_title": one.title}
        body = json.dumps({"event_type": kind, "message": message}).encode()
        at = one.at.timestamp()
        digest = f"{one.job} {number}".encode()
        rows.append(to_row(Delivery("default", at, at, digest, body)) | {"sent_at": one.at})
    database.store(rows, [])
    database.set_stale_after(10**9)  # the model has a clock of its own


def spans(events: Sequence[Event], now: datetime) -> list[tuple[bool, datetime, datetime]]:
    """When one job was connected (True), and when it was down."""
    found = []
    up_since = down_since = None
    for one in events:
        if one.state is None:
            continue
        if one.state == "CONNECTED":
            up_since = up_since or one.at
        elif up_since is not None:
            found.append((True, up_since, one.at))
            up_since = None
        if one.state in ("CONNECTED", "END"):
            if down_since is not None:
                found.append((False, down_since, one.at))
            down_since = None
        else:
            down_since = down_since or one.at
    found += [(up, since, now) for up, since in ((True, up_since), (False, down_since)) if since is not None]
    return found


@cache
def day(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).date().isoformat()


class Model:
    """Minute by minute: all times of its events are whole minutes."""

    def __init__(self, period: Period, zone: tzinfo) -> None:
        self._period, self._zone = period, zone
        self._rows: dict[tuple[str, str | None], dict[str, Any]] = defaultdict(empty)

    def _at(self, moment: datetime, one: Event) -> list[dict[str, Any]]:
        if not self._period.begin <= moment < self._period.end:
            return []
        found = [self._rows[day(moment, self._zone), one.room], self._rows["total", None]]
        for row in found:
            row["jobs"].add(one.job)
        return found

    def span(self, one: Event, began: datetime, ended: datetime, *, up: bool) -> None:
        for number in range(int((ended - began) / MINUTE)):
            for row in self._at(began + number * MINUTE, one):
                if up:
                    row["up"] += 60
                else:
                    row["down"][one.job, began] += 60

    def played(self, one: Event) -> None:
        for row in self._at(one.at, one):
            if one.title:
                row["titles"][one.title] += 1
            elif one.state is None:
                row["replies"] += 1

    def rows(self) -> dict[tuple[str, str | None], Any]:
        return {key: flat(row) for key, row in self._rows.items()}


def empty() -> dict[str, Any]:
    return {"jobs": set(), "up": 0, "down": defaultdict(int), "titles": Counter(), "replies": 0}


def model(events: Sequence[Event], period: Period, zone: tzinfo, now: datetime) -> dict[tuple[str, str | None], Any]:
    made = Model(period, zone)
    for job in {one.job for one in events}:
        own = [one for one in events if one.job == job]
        for up, began, ended in spans(own, now):
            made.span(own[0], began, ended, up=up)
        for one in own:
            if one.state is None:
                made.played(one)
    return {("total", None): flat(empty())} | made.rows()


def flat(row: dict[str, Any]) -> tuple[Any, ...]:
    titles = sorted(row["titles"].items(), key=lambda one: (-one[1], one[0]))
    down = row["down"].values()
    sums = (len(row["jobs"]), row["up"], len(down), sum(down), max(down, default=0))
    return (*sums, row["titles"].total(), row["replies"], *(titles[0] if titles else (None, None)))


def told(rows: Sequence[Row]) -> dict[tuple[str, str | None], Any]:
    names = ["jobs", "connected_seconds", "outages", "down_seconds", "longest_outage_seconds", "paragraphs", "replies"]
    names += ["shoot_script_title", "played"]
    return {(row["day"], row["room_id"]): tuple(row[name] for name in names) for row in rows}


STATES = ("CONNECTING", "CONNECTED", "CONNECTED", "DISCONNECTED", "RECONNECTING", "SOMETHING")
# With a day of 23 hours, one of 25, a midnight that is left out, and one that comes twice.
PLACES = [
    ("UTC", datetime(2026, 3, 1, tzinfo=UTC)),
    ("Asia/Shanghai", datetime(2026, 3, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 10, 31, tzinfo=UTC)),
    ("Asia/Beirut", datetime(2026, 3, 28, tzinfo=UTC)),
    ("America/Havana", datetime(2026, 10, 31, tzinfo=UTC)),
]


def livestreams(chance: random.Random, began: datetime) -> list[Event]:
    """Random jobs in three rooms over days, some of which never end; no two events of one in one minute."""
    events = []
    for number in range(14):
        room, job = chance.choice(("one", "two", None)), f"job {number}"
        at = began + chance.randrange(3 * 1440) * MINUTE
        for _ in range(chance.randint(1, 9)):
            kind = chance.random()
            state = chance.choice(STATES) if kind < 0.6 else None
            title = chance.choice("AB段") if state is None and kind < 0.9 else None
            events.append(Event(at, job, room, state, title))
            at += chance.choice((1, 20, 300, 900)) * chance.randint(1, 3) * MINUTE
        if chance.random() < 0.6:
            events.append(Event(at, job, room, "END"))
    return events


@pytest.mark.parametrize(("zone", "began"), PLACES, ids=lambda value: str(value)[:16])
@pytest.mark.parametrize("seed", range(3))
def test_model(database: Database, zone: str, began: datetime, seed: int) -> None:
    """Random livestreams add up as in the model, in whole days and in parts of them, with what lasts up to now."""
    chance = random.Random(f"{zone}{began}{seed}")
    events = livestreams(chance, began)
    put(database, events)
    now = max(one.at for one in events) + 600 * MINUTE
    begin = began + chance.randrange(1440) * MINUTE
    for period in (Period(began - 1440 * MINUTE, now), Period(begin, begin + chance.randint(1, 3000) * MINUTE)):
        with database.reading() as connection:
            rows, total = report(connection, period, ZoneInfo(zone), now=now)
            one_room, of_it = report(connection, period, ZoneInfo(zone), now=now, room="on")
        expected = model(events, period, ZoneInfo(zone), now)
        assert told([*rows, total]) == expected
        in_room = model([one for one in events if one.room == "one"], period, ZoneInfo(zone), now)
        assert told([*one_room, of_it]) == in_room
        assert list(told(rows)) == sorted(told(rows), key=lambda key: (key[0], key[1] is None, key[1]))


@pytest.mark.parametrize(
    ("zone", "first", "hours"),
    [
        ("America/New_York", date(2026, 3, 7), [24, 23, 24]),
        ("America/New_York", date(2026, 10, 31), [24, 25, 24]),
        ("Asia/Beirut", date(2026, 3, 28), [24, 23, 24]),
        ("America/Havana", date(2026, 10, 31), [24, 25, 24]),
        ("Asia/Shanghai", date(2026, 3, 7), [24, 24, 24]),
        ("Pacific/Apia", date(2011, 12, 29), [24, 24, 24]),  # which left out the 30th
    ],
)
def test_days(zone: str, first: date, hours: list[int]) -> None:
    """Days have the hours that they have there, and leave no gap."""
    place = ZoneInfo(zone)
    begin = datetime(first.year, first.month, first.day, tzinfo=place).astimezone(UTC)
    days = days_of(Period(begin, begin + timedelta(hours=sum(hours))), place)
    assert [(part.end - part.begin) / timedelta(hours=1) for _, part in days] == hours
    assert [part.begin for _, part in days[1:]] == [part.end for _, part in days[:-1]]


def test_over_midnight(database: Database) -> None:
    """A session over midnight counts in both days, its job in both, and in the total once."""
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    states = [(-90, "CONNECTING"), (-60, "CONNECTED"), (-10, "DISCONNECTED"), (20, "CONNECTED"), (50, "END")]
    put(database, [Event(midnight + at * MINUTE, "job", "room", state) for at, state in states])
    with database.reading() as connection:
        rows, total = report(
            connection, Period(midnight - timedelta(days=9), midnight + timedelta(days=9)), UTC, now=NOON
        )
    nothing = (0, 0, None, None)
    assert told(rows) == {
        ("2026-03-01", "room"): (1, 3000, 2, 2400, 1800, *nothing),
        ("2026-03-02", "room"): (1, 1800, 1, 1200, 1200, *nothing),
    }
    assert told([total]) == {("total", None): (1, 4800, 2, 3600, 1800, *nothing)}


def test_what_lasts_longer_than_the_period(database: Database) -> None:
    """A session or an outage without an event in the period counts, whether it goes on or ended later."""
    for job, states in {
        "up": [(0, "CONNECTED"), (9000, "END")],
        "down": [(0, "DISCONNECTED"), (9000, "CONNECTED")],
        "runs": [(0, "CONNECTED")],
        "before": [(0, "CONNECTED"), (10, "END")],
        "later": [(8000, "CONNECTED"), (9000, "END")],
    }.items():
        put(database, [Event(NOON + at * MINUTE, job, job, state) for at, state in states])
    period = Period(NOON + 3000 * MINUTE, NOON + 3060 * MINUTE)
    with database.reading() as connection:
        rows, _ = report(connection, period, UTC, now=NOON + 9999 * MINUTE)
    found = {room: row[1:4] for (_, room), row in told(rows).items()}
    assert found == {"up": (3600, 0, 0), "runs": (3600, 0, 0), "down": (0, 1, 3600)}


def test_stale_job(database: Database) -> None:
    """What lasts in a job that is stale counts up to its last event."""
    put(database, [Event(NOON, "job", "room", "CONNECTED"), Event(NOON + 30 * MINUTE, "job", "room")])
    database.set_stale_after(60)
    with database.reading() as connection:
        _, total = report(connection, Period(NOON, NOON + timedelta(days=30)), UTC, now=datetime.now(UTC))
    assert total["connected_seconds"] == 1800


def test_equal_to_plain_sql(database: Database, database_url: str) -> None:
    """The queries of the page give what the command gives."""
    chance = random.Random(5)
    put(database, livestreams(chance, datetime(2026, 3, 27, tzinfo=UTC)) + livestreams2(chance))
    (postgresql,) = blocks("docs/reference/tables-and-views.md", "The report as a query", language="sql")
    (sqlite,) = blocks("docs/reference/tables-and-views.md", "The report as a query", language="text")
    query = (sqlite if database.is_sqlite else postgresql).text.replace(":", r"\:")
    arguments = ("--since", "2026-03-01", "--until", "2026-04-01", "--time-zone", "Asia/Shanghai", "--json")
    rows = json.loads(told_by_command(database_url, *arguments))["days"]
    found = [dict(row) | {"day": str(row["day"])} for row in sql(database_url, query)]
    names = found[0].keys()
    assert len(found) > 5

    def key(row: Row) -> tuple[str, str]:
        return row["day"], row["room_id"] or ""

    for one, other in zip(sorted(found, key=key), sorted(rows, key=key), strict=True):
        for name in names:
            assert one[name] == (pytest.approx(other[name], abs=0.01) if "seconds" in name else other[name]), one


def livestreams2(chance: random.Random) -> list[Event]:
    """Others, earlier in the month."""
    began = datetime(2026, 2, 27, tzinfo=UTC)
    return [one._replace(job=f"early {one.job}") for one in livestreams(chance, began)]


def command(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", *arguments], env={"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": KEY})


def told_by_command(url: str, *arguments: str) -> str:
    result = command(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def shop(database: Database) -> None:
    """Two hours of a livestream, over midnight in Shanghai."""
    moments: list[tuple[float, str | None, str | None]] = [
        (0, "CONNECTED", None),
        (1, None, "开场介绍"),
        (60, "DISCONNECTED", None),
        (61, "CONNECTED", None),
        (70, None, None),
        (119, None, "=1+1"),
        (120, "END", None),
    ]
    began = datetime(2026, 3, 1, 15, tzinfo=UTC)
    put(database, [Event(began + at * MINUTE, "job", "room", state, title) for at, state, title in moments])


@pytest.mark.usefixtures("shop")
def test_for_people(database_url: str) -> None:
    """It says which time it is about, and has a line for each day and room, and a total."""
    arguments = ("--since", "2026-03-01", "--until", "2026-03-05", "--time-zone", "Asia/Shanghai")
    title, heading, *lines, legend = told_by_command(database_url, *arguments).splitlines()
    assert title == "2026-03-01 00:00:00 to 2026-03-05 00:00:00, time zone Asia/Shanghai"
    assert heading.split() == [
        "day",
        "room",
        "jobs",
        "connected",
        "out.",
        "down",
        "longest",
        "par.",
        "rep.",
        "most",
        "played",
    ]
    assert [line.split() for line in lines] == [
        ["2026-03-01", "room", "1", "1:00:00", "1", "0:00:00", "0:00:00", "1", "0", "1x", "开场介绍"],
        ["2026-03-02", "room", "1", "0:59:00", "1", "0:01:00", "0:01:00", "1", "1", "1x", "=1+1"],
        ["total", "1", "1:59:00", "1", "0:01:00", "0:01:00", "2", "1", "1x", "=1+1"],
    ] or lines
    assert legend.startswith("out.: outages")


@pytest.mark.usefixtures("shop")
def test_for_programs(database_url: str) -> None:
    """JSON has the period and whole numbers; CSV a line for each row, whose texts are no formulas."""
    arguments = ("--since", "2026-03-01", "--until", "2026-03-05", "--time-zone", "Asia/Shanghai")
    found = json.loads(told_by_command(database_url, *arguments, "--json"))
    assert (found["since"], found["until"]) == ("2026-02-28T16:00:00Z", "2026-03-04T16:00:00Z")
    assert found["time_zone"] == "Asia/Shanghai"
    assert [row["day"] for row in found["days"]] == ["2026-03-01", "2026-03-02"]
    assert found["total"]["connected_seconds"] == 7140
    rows = list(csv.DictReader(io.StringIO(told_by_command(database_url, *arguments, "--csv"))))
    assert [row["day"] for row in rows] == ["2026-03-01", "2026-03-02", "total"]
    assert rows[1]["shoot_script_title"] == "'=1+1"
    assert rows[0].keys() == found["total"].keys()


def test_defaults(database: Database, database_url: str) -> None:
    """Without options it is the last seven days of UTC, up to now, and what runs counts."""
    now = datetime.now(UTC)
    put(database, [Event(now - timedelta(minutes=2), "job", "room", "CONNECTED")])
    database.set_stale_after(43200)
    found = json.loads(told_by_command(database_url, "--json"))
    first = now.date() - timedelta(days=6)
    assert found["since"] in (f"{first}T00:00:00Z", f"{first + timedelta(days=1)}T00:00:00Z")
    assert found["time_zone"] == "UTC"
    assert found["until"] == found["now"]
    assert found["total"]["connected_seconds"] >= 120
    assert re.search(r"time zone UTC$", told_by_command(database_url).splitlines()[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--time-zone", "Asia/Atlantis"), "Asia/Atlantis is no time zone"),
        (("--time-zone", "../../etc/passwd"), "is no time zone"),
        (("--time-zone", "America"), "is no time zone"),
        (("--time-zone", ""), "is no time zone"),
        (("--time-zone", "\x1b[31m\ud83d\ude00"), "is no time zone"),
        (("--since", "yesterday"), "--since: is neither an age"),
        (("--until", "1w"), "--until: is neither an age"),
        (("--since", "2026-03-02", "--until", "2026-03-01"), "is not before --until"),
        (("--since", "0001-01-01"), "days are the most"),
        (("--since", "0001-01-01", "--until", "0001-01-02", "--time-zone", "Asia/Shanghai"), "--since"),
        (("--since", "9999-12-30", "--until", "9999-12-31T23:00"), "a calendar has no such days"),
        (("--json", "--csv"), "not both"),
    ],
    ids=str,
)
def test_wrong_usage(tmp_path_factory: pytest.TempPathFactory, arguments: tuple[str, ...], words: str) -> None:
    """What is wrong is said with the option's name, and what is right."""
    url = f"sqlite:///{tmp_path_factory.mktemp('report')}/receiver.db"
    result = command(url, *arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert all(one.isprintable() or one == "\n" for one in result.output)


def test_nothing(database: Database, database_url: str) -> None:
    """Where nothing is stored, the total is nothing."""
    with closing(database):
        found = json.loads(told_by_command(database_url, "--json"))
    assert found["days"] == []
    assert (found["total"]["jobs"], found["total"]["connected_seconds"], found["total"]["played"]) == (0, 0, None)
