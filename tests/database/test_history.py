"""`receiver history`, as people and programs read it."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from sqlalchemy import URL, create_engine, delete

from receiver.cli import main
from receiver.database import schema
from receiver.database.database import Database
from receiver.database.rows import to_row
from receiver.delivery import Delivery
from receiver.protocol.events import EventType
from receiver.tools.sender import body_of, livestream
from tests.helpers.postgres import new_database
from tests.helpers.receiver import KEY

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOB, ROOM = "e87104f76d7546ce8a46ac6b04c49c3c", "26f065244f754b3aa853b649a21aaf66"
SCRIPT, STATE, REPLY = EventType.SHOOT_SCRIPT_SWITCH, EventType.RTMP_STREAM_STATE_CHANGE, EventType.REPLY_COMMAND_FINISH


@pytest.fixture(scope="module")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return migrated(f"sqlite:///{tmp_path_factory.mktemp('history')}/receiver.db")


@pytest.fixture(scope="module")
def migrated_postgresql(postgresql_server: URL) -> Iterator[str]:
    with new_database(postgresql_server) as url:
        yield migrated(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty, migrated database, of each kind that is supported."""
    return emptied(request.getfixturevalue(f"migrated_{request.param}"))


@pytest.fixture
def sqlite_url(migrated_sqlite: str) -> str:
    return emptied(migrated_sqlite)


def migrated(url: str) -> str:
    with closing(Database(url)) as database:
        database.migrate()
    return url


def emptied(url: str) -> str:
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in (schema.events, schema.quarantine, schema.streams, schema.jobs):
            connection.execute(delete(table))
    engine.dispose()
    return url


def put(url: str, *events: tuple[float, EventType, dict[str, Any]], began: datetime = NOON) -> None:
    """Store events, each as (seconds, type, fields)."""
    bodies = [(at, body_of(event_type, {"room_id": ROOM, "job_id": JOB} | fields)) for at, event_type, fields in events]
    put_bodies(url, bodies, began)


def put_bodies(url: str, bodies: Iterable[tuple[float, bytes]], began: datetime) -> None:
    rows = []
    for at, body in bodies:
        time = began.timestamp() + at
        rows.append(to_row(Delivery("default", time + 0.1, time, b"%x" % int(time), body)))
    with closing(Database(url)) as database:
        database.store(rows, [])


LIVESTREAM: list[tuple[float, EventType, dict[str, Any]]] = [
    (0, STATE, {"state": "CONNECTING", "output_url": "rtmp://push.example.com/live/spring", "stream_key": "hidden"}),
    (2, STATE, {"state": "CONNECTED", "output_url": "rtmp://push.example.com/live/spring", "stream_key": "hidden"}),
    (3, SCRIPT, {"scene_script_name": "春季新茶", "shoot_script_sequence_no": "1", "shoot_script_title": "开场介绍"}),
    (33, REPLY, {"reply_id": "reply-1"}),
    (40, STATE, {"state": "DISCONNECTED"}),
    (41, SCRIPT, {"scene_script_name": "Mug 旅行杯", "shoot_script_sequence_no": "2", "shoot_script_title": "特点"}),
    (55, STATE, {"state": "CONNECTED"}),
    (3600, STATE, {"state": "END"}),
]


def history(url: str, *arguments: str, **environ: str) -> Result:
    environ |= {"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": KEY}
    return CliRunner().invoke(main, ["history", *arguments], env=environ)


def printed(url: str, *arguments: str) -> str:
    result = history(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def on_terminal(url: str, *arguments: str, columns: int = 80) -> str:
    """What a terminal is sent."""
    own, other = pty.openpty()
    termios.tcsetwinsize(own, (24, columns))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environ |= {"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": KEY, "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "receiver", "history", *arguments]
    with subprocess.Popen(command, env=environ, stdin=other, stdout=other, stderr=other) as process:
        os.close(other)
        shown = b""
        while chunk := _read(own):
            shown += chunk
    os.close(own)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # which is how Linux says that nobody writes any more
        return b""


def plain(shown: str) -> list[str]:
    """The lines without colours and trailing blanks."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()]


def test_job(database_url: str) -> None:
    """A job is drawn with its totals, a bar of its connection, and each state, paragraph and reply with its length."""
    put(database_url, *LIVESTREAM)
    lines = plain(printed(database_url, JOB))
    assert lines == [
        f"job     {JOB}",
        f"room    {ROOM}",
        "state   END since 2026-03-01 13:00:00 UTC",
        "events  8 in 1:00:00, 2026-03-01 12:00:00 to 2026-03-01 13:00:00",
        "stream  connected 0:59:43; reconnects 1; down 0:00:17, at most 0:00:15 at once",
        "script  paragraphs 2; replies 1",
        "        -" + "=" * 59,
        "",
        "2026-03-01 12:00:00    0:00:02  CONNECTING rtmp://push.example.com/live/spring",
        "2026-03-01 12:00:02    0:00:38  CONNECTED",
        "2026-03-01 12:00:03    0:00:38    | 春季新茶 · 1 开场介绍",
        "2026-03-01 12:00:33               | reply reply-1",
        "2026-03-01 12:00:40    0:00:15  DISCONNECTED",
        "2026-03-01 12:00:41    0:59:19    : Mug 旅行杯 · 2 特点",
        "2026-03-01 12:00:55    0:59:05  CONNECTED",
        "2026-03-01 13:00:00             END",
    ]


def test_running_job(sqlite_url: str) -> None:
    """What lasts is told as lasting, up to now."""
    began = datetime.now(UTC) - timedelta(hours=2, seconds=1)
    put(sqlite_url, *LIVESTREAM[:3], began=began)
    shown = plain(printed(sqlite_url, JOB))
    assert re.search(r"^state   CONNECTED since .* UTC, (2:00|1:59):.* ago$", shown[2])
    assert re.search(
        r"^stream  connected (2:00|1:59):\d\d; reconnects 0; down 0:00:02, at most 0:00:02 at once$", shown[4]
    )
    assert shown[6].strip() == "-" + "=" * 59
    _, line, _ = printed(sqlite_url).splitlines()
    assert re.search(r" CONNECTED .* (2:00|1:59):\d\d +0 +1 +0$", line)
    assert re.search(r"(2:00|1:59):\d\d\+  CONNECTED$", shown[-2])
    assert re.search(r"(2:00|1:59):\d\d\+    \| 春季新茶", shown[-1])


def test_job_that_is_down(database_url: str) -> None:
    """What is down now counts as down up to now, and not as connected."""
    began = datetime.now(UTC) - timedelta(hours=2, seconds=1)
    put(database_url, *LIVESTREAM[:5], began=began)
    shown = plain(printed(database_url, JOB))
    down = r"(2:00|1:59):\d\d"
    assert re.search(
        rf"^stream  connected 0:00:38; reconnects 0; down {down}, at most (1:59|1:58):\d\d at once$", shown[4]
    )
    assert shown[6].strip() == "-" + "." * 59
    _, line, _ = printed(database_url).splitlines()
    assert " DISCONNECTED " in line
    assert line.split()[-4] == "0:00:38"


def test_stale_job(database_url: str) -> None:
    """A job without END whose last event is long ago is said to be stale, and counts up to that event."""
    put(database_url, *LIVESTREAM[:7])
    lines = plain(printed(database_url, JOB))
    assert re.search(r"^state   CONNECTED since .* ago; stale: it is not known whether it still runs$", lines[2])
    assert lines[4] == "stream  connected 0:00:38; reconnects 1; down 0:00:17, at most 0:00:15 at once"
    assert lines[-1] == "2026-03-01 12:00:55             CONNECTED"
    _, line, _ = printed(database_url).splitlines()
    assert line.split()[2:] == ["stale", "2026-03-01", "12:00:55", "0:00:38", "1", "2", "1"]
    (job,) = json.loads(printed(database_url, "--json"))
    assert job["stale"] is True


def test_outages(database_url: str) -> None:
    """Downtime is that of stream_outages: before the first connection too, and until another URL is connected."""
    url = {"output_url": "rtmp://other/"}
    moments = [(0, "CONNECTING"), (60, "END"), (70, "RECONNECTING"), (80, "DISCONNECTED"), (100, "CONNECTED")]
    changes = [(at, STATE, {"state": state}) for at, state in moments]
    put(database_url, *changes, (120, STATE, {"state": "CONNECTED"} | url), (125, STATE, {"state": "END"}))
    assert "down 0:01:30, at most 0:01:00 at once" in printed(database_url, JOB)
    found = json.loads(printed(database_url, JOB, "--json"))["stream_outages"]
    assert [(row["began_with"], row["duration_seconds"]) for row in found] == [("CONNECTING", 60), ("RECONNECTING", 30)]


def test_product(sqlite_url: str) -> None:
    """The product of a paragraph is shown behind it, by its title or else its id."""
    put(
        sqlite_url,
        (0, SCRIPT, {"shoot_script_title": "开场", "product_id": "7", "product_title": "杯子"}),
        (9, SCRIPT, {"shoot_script_title": "特点", "product_id": "8"}),
    )
    first, second = plain(printed(sqlite_url, JOB))[-2:]
    assert first.endswith("开场 · 杯子")
    assert second.endswith("特点 · 8")
    assert json.loads(printed(sqlite_url, JOB, "--json"))["timeline"][0]["product_id"] == "7"


def test_job_of_one_event(sqlite_url: str) -> None:
    """A job that left out all that it may is drawn too; so is one whose clock is ahead."""
    put(sqlite_url, (0, SCRIPT, {"room_id": None}))
    assert plain(printed(sqlite_url, JOB))[-1].endswith("a paragraph")
    put(sqlite_url, (3600, STATE, {"state": "CONNECTED", "job_id": "early"}), began=datetime.now(UTC))
    assert plain(printed(sqlite_url, "early"))[-1].endswith("0:00:00+  CONNECTED")


def test_latest_jobs(database_url: str) -> None:
    """The jobs are listed, the latest event first, at most 20 of them; since a time, all of that time."""
    for number in range(30):
        put(
            database_url,
            *((at + number, kind, fields | {"job_id": f"{number:02}-{JOB}"}) for at, kind, fields in LIVESTREAM),
        )
    heading, *lines, legend = printed(database_url).splitlines()
    assert heading.split() == ["job", "room", "state", "since", "(UTC)", "connected", "rec.", "par.", "rep."]
    assert [line.split()[0] for line in lines] == [f"{number:02}-{JOB}" for number in range(29, 9, -1)]
    assert lines[0].split() == [f"29-{JOB}", ROOM, "END", "2026-03-01", "13:00:29", "0:59:43", "1", "2", "1"]
    assert legend.startswith("rec.: reconnects")
    assert len(printed(database_url, "--since", "2026-03-01").splitlines()) == 32
    assert len(printed(database_url, "--since", "2026-03-01T13:00:25").splitlines()) == 7
    assert printed(database_url, "--since", "12h") == "There are no such jobs.\n"


def test_room(database_url: str) -> None:
    """The beginning of a room's id picks its jobs, to the letter."""
    for job, room in (("a", "100%"), ("b", "100_x"), ("c", None), ("d", "Room"), ("e", "room")):
        put(database_url, (0, STATE, {"job_id": job, "room_id": room, "state": "END"}))
    for prefix, jobs in (("100", "ab"), ("100%", "a"), ("100_", "b"), ("r", "e"), ("R", "d"), ("x", "")):
        found = json.loads(printed(database_url, "--json", "--room", prefix))
        assert sorted(row["job_id"] for row in found) == list(jobs)
    assert json.loads(printed(database_url, "d", "--json", "--room", "Ro"))["live_job"]["job_id"] == "d"
    assert history(database_url, "d", "--room", "ro").exit_code == 1


def test_prefix(database_url: str) -> None:
    """The beginning of a job's id is enough; where it is not, the candidates are named."""
    for job in ("abc", "abc1", "abd%", *(f"x{number}" for number in range(12))):
        put(database_url, (0, STATE, {"job_id": job, "state": "END"}))
    for prefix, job in (("abc1", "abc1"), ("abc", "abc"), ("abd", "abd%")):
        assert f"job     {job}" in printed(database_url, prefix).splitlines()
    several = history(database_url, "ab")
    assert several.exit_code == 1
    assert re.fullmatch(r"Error: several jobs begin with ab: ab(c|c1|d%), ab\S+, ab\S+\n", several.stderr)
    assert history(database_url, "x").stderr.endswith(" and more\n")
    for unknown in ("nowhere", "%", "ABC"):
        missing = history(database_url, unknown)
        assert (missing.exit_code, missing.stderr) == (1, f"Error: no job begins with {unknown}\n")


def test_since_in_a_job(sqlite_url: str) -> None:
    """Of one job, --since leaves out what was over by then; totals are of the whole job."""
    put(sqlite_url, *LIVESTREAM)
    lines = plain(printed(sqlite_url, JOB, "--since", "2026-03-01T12:00:50+00:00"))
    assert lines[3].startswith("events  8 in")
    assert [line[21:].split()[1] for line in lines[8:-1]] == ["DISCONNECTED", ":", "CONNECTED"]


@pytest.mark.parametrize("since", ["", "1w", "yesterday", "-1d", "2026-13-01", "0001-01-01T00:00+14:00"])
def test_wrong_since(sqlite_url: str, since: str) -> None:
    """What is neither an age nor a time is a wrong usage that says what is right."""
    result = history(sqlite_url, f"--since={since}")
    assert result.exit_code == 2
    assert "such as 12h, 7d or 30m" in result.output


def test_json(database_url: str) -> None:
    """JSON has the views' own columns, whole ids, and times in UTC."""
    put(database_url, *LIVESTREAM)
    (job,) = json.loads(printed(database_url, "--json"))
    assert job == {
        "room_id": ROOM,
        "job_id": JOB,
        "first_event_at": "2026-03-01T12:00:00Z",
        "last_event_at": "2026-03-01T13:00:00Z",
        "state": "END",
        "state_since": "2026-03-01T13:00:00Z",
        "connected_seconds": 3583.0,
        "reconnects": 1,
        "events": 8,
        "paragraphs": 2,
        "replies": 1,
        "connected_since": None,
        "stale": False,
        "room_name": None,
        "platform_state": None,
    }
    found = json.loads(printed(database_url, JOB[:6], "--json"))
    assert found["live_job"] | {"room_name": None, "platform_state": None} == job
    assert found["platform_job"] is None
    assert [row["ended_by"] for row in found["stream_sessions"]] == ["DISCONNECTED", "END"]
    assert [row["event_type"] for row in found["timeline"]] == [str(kind) for _, kind, _ in LIVESTREAM]
    assert found["timeline"][2] == {
        "at": "2026-03-01T12:00:03Z",
        "ended_at": "2026-03-01T12:00:41Z",
        "duration_seconds": 38.0,
        "event_type": "SHOOT_SCRIPT_SWITCH",
        "state": None,
        "output_url": None,
        "scene_script_name": "春季新茶",
        "shoot_script_sequence_no": 1,
        "shoot_script_title": "开场介绍",
        "reply_id": None,
        "live_id": None,
        "product_id": None,
        "product_title": None,
    }
    assert json.loads(printed(database_url, "--json", "--since", "1h")) == []


def test_csv(database_url: str) -> None:
    """CSV has a header and a line for each job, or for each moment of the one."""
    put(database_url, *LIVESTREAM)
    (job,) = csv.DictReader(io.StringIO(printed(database_url, "--csv")))
    assert (job["job_id"], job["connected_seconds"]) == (JOB, "3583.0")
    moments = list(csv.DictReader(io.StringIO(printed(database_url, JOB, "--csv"))))
    assert [moment["state"] for moment in moments if moment["state"]] == [
        "CONNECTING",
        "CONNECTED",
        "DISCONNECTED",
        "CONNECTED",
        "END",
    ]
    assert [moment["shoot_script_title"] for moment in moments][2] == "开场介绍"
    assert len(printed(database_url, "--csv", "--since", "1h").splitlines()) == 1
    assert history(database_url, "--csv", "--json").exit_code == 2


EVIL = "\x1b]0;owned\x07\x1b[31m\u009b2J\u202egnp"


def test_titles_control_no_terminal(sqlite_url: str) -> None:
    """Whatever stands in a title, an id or a state, no control character reaches a terminal; JSON escapes it."""
    evil = {"room_id": EVIL, "job_id": f"job{EVIL}", "scene_script_name": EVIL, "shoot_script_title": f"[red]{EVIL}\n"}
    put(sqlite_url, (0, SCRIPT, evil), (1, STATE, evil | {"state": EVIL, "output_url": EVIL}))
    put(sqlite_url, (0, STATE, {"job_id": "job2", "state": "END"}))
    shown = [printed(sqlite_url, *how) for how in ((), ("--csv",), ("--json",))]
    shown += [printed(sqlite_url, f"job{EVIL}", *how) for how in ((), ("--csv",), ("--json",))]
    shown.append(history(sqlite_url, "job").stderr)
    for text in shown:
        assert all(one.isprintable() or one == "\n" for one in text)
    assert json.loads(shown[2])[0]["room_id"] == EVIL
    assert "[red]" in shown[3]
    for arguments in ((), (f"job{EVIL}",)):
        terminal = on_terminal(sqlite_url, *arguments)
        assert all(one.isprintable() or one == "\n" for one in re.sub(r"\x1b\[[0-9;]*m", "", terminal))


@pytest.mark.parametrize("title", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1"])
def test_csv_is_no_formula(sqlite_url: str, title: str) -> None:
    """A title that a spreadsheet would run as a formula is a text there."""
    put(sqlite_url, (0, SCRIPT, {"shoot_script_title": title}))
    (row,) = csv.DictReader(io.StringIO(printed(sqlite_url, JOB, "--csv")))
    assert row["shoot_script_title"].startswith(("'", "�"))
    assert json.loads(printed(sqlite_url, JOB, "--json"))["timeline"][0]["shoot_script_title"] == title


def test_terminal(sqlite_url: str) -> None:
    """On a terminal no line is wider than it, wide characters counted twice, and columns stand below each other."""
    put(sqlite_url, *LIVESTREAM)
    put(
        sqlite_url,
        (1, SCRIPT, {"scene_script_name": "很长的" * 100}),
        (2, STATE, {"state": "SOMETHING_LONGER_THAN_ANY"}),
    )
    put(sqlite_url, (1, STATE, {"job_id": "short", "room_id": "短", "state": "CONNECTED"}))
    listed, drawn = on_terminal(sqlite_url), on_terminal(sqlite_url, JOB)
    for shown in (listed, drawn):
        assert "\x1b[" in shown
        assert max(map(cell_len, plain(shown))) <= 80
    _, ended, silent, _ = plain(listed)
    assert cell_len(ended.partition("END")[0]) == cell_len(silent.partition("stale")[0])
    assert "很长的" in drawn
    assert "…" in drawn


def test_narrow_terminal(sqlite_url: str) -> None:
    """A terminal with less than 80 columns is sent the same lines, and breaks them itself: no number is cut off."""
    put(sqlite_url, *LIVESTREAM)
    assert plain(on_terminal(sqlite_url, columns=40)) == plain(on_terminal(sqlite_url))
    assert "…" not in on_terminal(sqlite_url, columns=40)


def test_nothing_is_cut_off_without_a_terminal(sqlite_url: str) -> None:
    """In a file or a pipe there are no colours, and each line is whole, however long."""
    title, state = "很长的" * 400, "S" * 255
    began = datetime.now(UTC) - timedelta(minutes=1)
    put(sqlite_url, (1, SCRIPT, {"shoot_script_title": title}), (2, STATE, {"state": state}), began=began)
    for shown in (printed(sqlite_url, JOB), printed(sqlite_url)):
        assert "\x1b" not in shown
        assert state in shown
    assert title in printed(sqlite_url, JOB)
    assert f"{JOB} {ROOM}" in printed(sqlite_url)


def test_no_secret_is_shown(sqlite_url: str) -> None:
    """The stream key is in none of the forms."""
    put(sqlite_url, *LIVESTREAM)
    for arguments in ((), (JOB,)):
        for form in ((), ("--json",), ("--csv",)):
            assert "hidden" not in printed(sqlite_url, *arguments, *form)


def test_database_that_is_not_migrated(tmp_path: Path) -> None:
    """A database without the views says what to run; where there is none, none is made."""
    result = history(f"sqlite:///{tmp_path}/new.db")
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "is no file: `receiver serve` makes it" in result.stderr
    (tmp_path / "new.db").touch()
    result = history(f"sqlite:///{tmp_path}/new.db")
    assert result.exit_code == 1
    assert "run `receiver migrate`" in result.stderr


def test_simulated_livestream(database_url: str) -> None:
    """A whole simulated livestream is found by its beginning, with all that it was."""
    stream = livestream(240)
    put_bodies(database_url, stream.events, NOON)
    found = json.loads(printed(database_url, stream.job_id[:8], "--json"))
    assert len(found["timeline"]) == len(stream.events) == found["live_job"]["events"]
    assert found["live_job"]["reconnects"] == 1
    assert sum(row["duration_seconds"] for row in found["stream_sessions"]) == pytest.approx(
        found["live_job"]["connected_seconds"]
    )
