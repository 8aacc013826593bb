"""The commands, as people type them, against a real receiver where they need one."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prometheus_client import generate_latest

from receiver.cli import main
from receiver.database.database import Database
from receiver.metrics import Metrics
from receiver.protocol.events import StreamState
from receiver.protocol.signature import sign
from tests.helpers.http_server import answering
from tests.helpers.receiver import KEY, SAMPLES, Process, free_port, running, wait_until

SAMPLE = SAMPLES["REPLY_COMMAND_FINISH"]
SIGNED = f"/callbacks/metastudio?hwSecret={'0' * 64}&hwTime=66df9308"


def invoke(*arguments: str, stdin: bytes | None = None, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin, env=environ)


def failed(result: Result, code: int = 1) -> str:
    """The one line that a failed command says."""
    assert result.exit_code == code
    assert "Traceback" not in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("cli")) as process:
        yield process


@pytest.fixture
def beside(receiver: Process, monkeypatch: pytest.MonkeyPatch) -> Process:
    """The running receiver, with its settings for the commands of this process."""
    use_settings_of(receiver, monkeypatch)
    return receiver


def use_settings_of(receiver: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(receiver.folder)
    for name, value in receiver.environ.items():
        monkeypatch.setenv(name, value)


def test_init_writes_what_serve_needs(folder: Path) -> None:
    """The configuration has a random key of 32 characters, and nobody else can read it or the certificate's key."""
    assert invoke("init").exit_code == 0
    written = tomllib.loads((folder / "receiver.toml").read_text())
    assert len(written["key"]) == 32
    assert written["status_page"] is True
    for name in ("receiver.toml", "var/localhost.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert invoke("config").exit_code == 0


def test_init_never_overwrites(folder: Path) -> None:
    """A second init leaves the key as it is."""
    invoke("init")
    before = (folder / "receiver.toml").read_bytes()
    assert "receiver.toml exists" in failed(invoke("init"))
    assert (folder / "receiver.toml").read_bytes() == before


def test_init_refuses_a_url_that_cannot_be_registered(folder: Path) -> None:
    """A wrong URL is refused before anything is written; so is a folder that is not there."""
    for url in ("http://example.com/", ""):
        assert "live_event_type_callback_url" in failed(invoke("init", "--url", url))
    assert "No such file" in failed(invoke("init", "--config", "nowhere/receiver.toml"))
    assert list(folder.iterdir()) == []


def test_init_for_headers(folder: Path) -> None:
    """The URL and the auth type of the registration are written down."""
    invoke("init", "--config", "other.toml", "--url", "https://example.com/a?b=1", "--auth-type", "MSS_A_HEAD")
    shown = json.loads(invoke("--config", "other.toml", "config", "--registration").output)
    assert shown == {
        "live_event_callback_config": {
            "live_event_type_callback_url": "https://example.com/a?b=1",
            "auth_type": "MSS_A_HEAD",
            "callback_event_type": ["SHOOT_SCRIPT_SWITCH", "RTMP_STREAM_STATE_CHANGE", "REPLY_COMMAND_FINISH"],
            "key": tomllib.loads((folder / "other.toml").read_text())["key"],
        }
    }


def test_config_masks_secrets(folder: Path) -> None:
    """The effective settings are shown without any secret."""
    shown = invoke(
        "config",
        RECEIVER_KEY=KEY,
        RECEIVER_PREVIOUS_KEY="the previous",
        RECEIVER_DATABASE_URL="postgresql+psycopg://me:the-password@db/receiver",
        RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL="https://example.com/a?token=the-token",
    ).output
    assert 'database_url = "postgresql+psycopg://me:***@db/receiver"' in shown
    assert 'endpoints.default.live_event_type_callback_url = "https://example.com/a?****"' in shown
    for secret in (KEY, "the previous", "the-password", "the-token"):
        assert secret not in shown
    assert list(folder.iterdir()) == []


def test_registration_without_a_key(folder: Path) -> None:
    """With auth_type NONE there is no key to register."""
    url = "https://example.com/0123456789abcdef"
    shown = invoke("config", "--registration", RECEIVER_AUTH_TYPE="NONE", RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL=url)
    assert "key" not in json.loads(shown.output)["live_event_callback_config"]
    assert list(folder.iterdir()) == []


def test_which_endpoint(folder: Path) -> None:
    """Where there are several endpoints, a command that needs one says which there are."""
    (folder / "receiver.toml").write_text(
        "".join(
            f'[[endpoints]]\nname="{name}"\nkey="{name}"\nlive_event_type_callback_url="https://x.example/{name}"\n'
            for name in ("one", "two")
        )
    )
    assert "name one of one, two" in failed(invoke("config", "--registration"), code=2)
    assert "name one of one, two" in failed(invoke("send", "--endpoint", "three"), code=2)
    assert '"key": "two"' in invoke("config", "--registration", "--endpoint", "two").output


def test_config_of_one_endpoint(folder: Path) -> None:
    """With --endpoint only that one's settings are shown; a name that none has fails."""
    (folder / "receiver.toml").write_text(
        "".join(
            f'[[endpoints]]\nname="{name}"\nkey="{name * 8}"\nlive_event_type_callback_url="https://x.example/{name}"\n'
            for name in ("one", "two")
        )
    )
    shown = invoke("config", "--endpoint", "two").output.splitlines()
    assert {line.rpartition(".")[0] for line in shown if "https" not in line} == {"endpoints.two"}
    assert "name one of one, two" in failed(invoke("config", "--endpoint", "three"), code=2)


def test_short_keys_are_warned_about(folder: Path) -> None:
    """A key of under 16 characters, of the two that count, is named once by `config`, without the key."""
    for keys, warnings in ((("x" * 16, ""), 0), (("Q" * 15, ""), 1), (("x" * 16, "Q"), 1), (("Q", "Q"), 1)):
        result = invoke("config", RECEIVER_KEY=keys[0], RECEIVER_PREVIOUS_KEY=keys[1])
        assert (result.exit_code, result.stderr.count("Warning: key of endpoint default: is short")) == (0, warnings)
        assert "Q" not in result.output
    assert list(folder.iterdir()) == []


def test_short_key_in_the_log(tmp_path: Path) -> None:
    """At the start the log has one line about it; with a longer key it has none."""
    with running(tmp_path, RECEIVER_KEY="Q" * 15) as receiver:
        assert receiver.log.count("key is short") == 1
        assert "QQ" not in receiver.log


def test_simulate_takes_a_rate_for_a_load_alone(folder: Path) -> None:
    """--rate and --connections say nothing of a livestream, and are refused there."""
    for option in ("--rate", "--connections"):
        assert f"{option}: is of a load: give --events too" in failed(invoke("simulate", option, "5"), code=2)
    assert list(folder.iterdir()) == []


def test_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows what the running receiver says; it fails where the database is down, and where nothing runs."""
    with running(tmp_path) as receiver:
        use_settings_of(receiver, monkeypatch)
        receiver.post(SAMPLE)
        receiver.request("POST", "/callbacks/metastudio", b"{}")
        receiver.rows("SELECT 1")
        shown = invoke("status")
        assert shown.exit_code == 0, shown.output
        for part in ("1 accepted since the start, 1 rejected", "takes writes; 0 events wait", "up: sqlite:///var/"):
            assert part in shown.output
        assert f"{tmp_path}/var/journal.db, " in shown.output
        with closing(sqlite3.connect(tmp_path / "var/receiver.db", isolation_level=None)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        receiver.post(SAMPLE)
        wait_until(lambda: receiver.metric("database_up") == 0, "a database that is down")
        assert (invoke("status").exit_code, "database   down" in invoke("status").output) == (1, True)
        receiver.stop()
    assert "operations_listen: no receiver answers" in failed(invoke("status"))


@pytest.mark.parametrize("ready", [b"{}", b"[]", b"<html>", b'{"status": "ok"}'])
def test_status_of_another_program(ready: bytes) -> None:
    """Where something else listens on the port, it says that no receiver does."""
    with answering(lambda target, _: ready if target == "/readyz" else b"up 1\n") as url:
        result = invoke("status", RECEIVER_KEY=KEY, RECEIVER_OPERATIONS_LISTEN=url.removeprefix("http://"))
    assert "operations_listen: no receiver answers" in failed(result)


def test_status_counts_by_outcome_alone() -> None:
    """An endpoint may have the name of an outcome."""
    metrics = Metrics(("rejected",))
    metrics.callbacks_total.labels("rejected", "accepted").inc()
    pages = {"/readyz": b'{"status":"ok"}', "/metrics": generate_latest(metrics.registry)}
    with answering(lambda target, _: pages[target]) as url:
        result = invoke("status", RECEIVER_KEY=KEY, RECEIVER_OPERATIONS_LISTEN=url.removeprefix("http://"))
    assert "1 accepted since the start, 0 rejected" in result.output


def test_settings_errors_are_one_line(folder: Path) -> None:
    """Without a key every command that needs one says what to do."""
    assert failed(invoke("serve")).startswith("Error: key: is not set")
    assert "is no setting" not in failed(invoke("config"))
    assert list(folder.iterdir()) == []


def test_migrate(folder: Path) -> None:
    """Migrating says from where to where, and a second time that there is nothing to do."""
    assert invoke("migrate", RECEIVER_KEY=KEY).output == "The schema is at revision 0004; it was None.\n"
    assert invoke("migrate", RECEIVER_KEY=KEY).output == "The schema is at revision 0004 already.\n"
    assert (folder / "var/receiver.db").exists()


def test_database_errors_are_one_line(folder: Path) -> None:
    """A database that cannot be reached is named by its setting, without its password."""
    url = f"postgresql+psycopg://me:the-password@127.0.0.1:{free_port()}/receiver"
    line = failed(invoke("migrate", RECEIVER_KEY=KEY, RECEIVER_DATABASE_URL=url))
    assert line.startswith("Error: database_url: ")
    assert "the-password" not in line
    assert list(folder.iterdir()) == []


def test_database_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask, nobody else may read a SQLite database, in which stream keys are."""
    environ = os.environ | {"RECEIVER_KEY": KEY}
    command = [sys.executable, "-m", "receiver", "migrate"]
    subprocess.run(command, cwd=tmp_path, env=environ, umask=0o022, check=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "var", *(tmp_path / "var").iterdir()]}
    assert modes == {"var": 0o700, "receiver.db": 0o600}


def test_send(beside: Process) -> None:
    """One event is signed, posted and stored; without --body it is a made-up one."""
    result = invoke("send", "--body", "-", stdin=SAMPLE)
    assert result.exit_code == 0
    assert result.output.startswith('200 {"status":"accepted"} (')
    assert invoke("send", "--to", f"https://localhost:{beside.port}").exit_code == 0
    rows = beside.rows("SELECT job_id, state, reply_id FROM events ORDER BY received_at")
    assert [tuple(row) for row in rows] == [
        ("e87104f76d7546ce8a46ac6b04c49c3c", None, "e87104f76d7546ce8a46ac6b04c49c3c"),
        ("job-of-receiver-send", "CONNECTED", None),
    ]


def test_send_fails_where_it_is_refused(beside: Process) -> None:
    """An answer other than 200 is shown, and is a failure."""
    result = invoke("send", "--at", "1234567890")
    assert (result.exit_code, result.output[:3]) == (1, "401")
    assert beside.process.poll() is None


def test_send_says_why_nothing_was_sent(beside: Process) -> None:
    """No receiver, no trust and no address are told apart."""
    assert "is the receiver running there?" in failed(invoke("send", "--to", f"https://localhost:{free_port()}"))
    assert "--trust" in failed(invoke("send", RECEIVER_TLS_CERTIFICATE="", RECEIVER_TLS_KEY=""))
    for address in ("localhost:8443", "https://localhost:x", f"https://:{beside.port}"):
        assert "is not the address" in failed(invoke("send", "--to", address))
    for time_ in ("nan", "-1", "1e300"):
        assert "is not a time" in invoke("send", "--at", time_).stderr
    assert beside.process.poll() is None


def test_simulate_shows_what_arrived(beside: Process) -> None:
    """A whole livestream is sent, stored and shown in order."""
    result = invoke("simulate")
    assert result.exit_code == 0
    assert '29 answered 200 {"status":"accepted"}' in result.output
    shown = [state for line in result.output.splitlines() for state in StreamState if f"  {state}" in line[20:]]
    assert shown == ["CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING", "CONNECTED", "END"]
    (row,) = beside.rows("SELECT state FROM streams WHERE state = 'END'")
    assert row["state"] == "END"


def test_simulate_waits_for_the_tables(tmp_path: Path) -> None:
    """Beside a receiver that has not made its tables yet, simulate waits for them."""
    (tmp_path / "var").mkdir()
    with closing(sqlite3.connect(tmp_path / "var/receiver.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA journal_mode = wal")
        holder.execute("BEGIN IMMEDIATE")
        with running(tmp_path) as receiver:
            command = [sys.executable, "-m", "receiver", "simulate"]
            with subprocess.Popen(
                command, cwd=tmp_path, env=receiver.environ, stdout=subprocess.PIPE, text=True
            ) as simulate:
                wait_until(lambda: receiver.metric("journal_events") == 29, "all that is simulated")
                holder.execute("ROLLBACK")
                shown, _ = simulate.communicate()
    assert simulate.returncode == 0
    assert "29 events of job" in shown


def test_simulate_a_load(beside: Process) -> None:
    """A load is of distinct events, each stored once."""
    before = len(beside.rows("SELECT 1 FROM events"))
    result = invoke("simulate", "--events", "60", "--rate", "1000", "--connections", "3")
    assert result.exit_code == 0
    assert '60 answered 200 {"status":"accepted"}' in result.output
    assert len(beside.rows("SELECT 1 FROM events")) == before + 60


def test_doctor(beside: Process, tmp_path: Path) -> None:
    """A captured URL is examined with the configured key, and the body is read."""
    signed = sign(beside.url, KEY, time.time()).url
    (tmp_path / "body").write_bytes(SAMPLE)
    result = invoke("doctor", signed, "--body", str(tmp_path / "body"))
    assert result.exit_code == 0
    assert "the signature is right: form host-sorted-hex, current key" in result.output
    assert "reply_id = e87104f76d7546ce8a46ac6b04c49c3c" in result.output
    assert invoke("doctor", signed.replace("hwTime", "HwTime")).exit_code == 1
    assert invoke("doctor", "-H", "x-hw-mss-secret: 1").exit_code == 1
    assert "give a captured URL" in failed(invoke("doctor"), code=2)


@pytest.mark.usefixtures("beside")
def test_doctor_has_no_traceback() -> None:
    """What somebody has sent as a Host, or bytes that are no UTF-8, are examined, and control nothing."""
    for url in (
        f"{SIGNED}&a=\x1b]0;title\x07",
        f"https://\udcff.example.com{SIGNED}",
        "https://[/",
        "moc.\u202eelpmaxe\x9b31m",
    ):
        for host in ("[", "\udcff", "\x1b[31m", "直播.example"):
            result = invoke("doctor", url, "-H", f"Host: {host}")
            assert result.exit_code == 1
            assert isinstance(result.exception, SystemExit)
            assert all(line.isprintable() for line in result.output.splitlines())


@pytest.mark.usefixtures("beside")
def test_what_a_server_answers_controls_no_terminal() -> None:
    """What is answered by another server than was meant is shown, without what it would do to a terminal."""
    with answering(lambda *_: "\x1b[2J\u202e?".encode()) as url:
        result = invoke("send", "--to", url)
    assert result.output.startswith("200 �[2J�? (")


@pytest.mark.usefixtures("beside")
def test_a_name_that_is_none() -> None:
    """An address that cannot be a name is told in one line."""
    assert "https://a..b: " in failed(invoke("send", "--to", "https://a..b/"))


def listed(endpoint: str, reason: str) -> list[str]:
    """The lines in which a row of the quarantine is listed."""
    with closing(Database("sqlite:///receiver.db")) as database:
        database.migrate()
        now = datetime.now(UTC)
        row = {"sent_at": now, "received_at": now, "digest": b"1", "body": b""}
        database.store([], [row | {"endpoint": endpoint, "reason": reason}])
    result = invoke("quarantine", "list", RECEIVER_KEY=KEY, RECEIVER_DATABASE_URL="sqlite:///receiver.db")
    return result.output.splitlines()[1:]


@pytest.mark.usefixtures("folder")
def test_the_quarantine_controls_no_terminal() -> None:
    """What others have written into the database is shown as it is, without markup and control characters."""
    (line,) = listed("[red]a\x1b[2J", "\u202e")
    assert "[red]a�[2J" in line
    assert line.isprintable()


@pytest.mark.usefixtures("folder")
def test_the_quarantine_in_a_pipe() -> None:
    """Where it is printed to no terminal, a row is a line, with whole names."""
    (line,) = listed("e" * 64, "unstorable_text")
    assert line.split()[3:5] == ["e" * 64, "unstorable_text"]


def test_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this version understands is moved to the events, what is stale only on demand; the rest stays."""
    with running(tmp_path) as receiver:
        use_settings_of(receiver, monkeypatch)
        assert receiver.post(b"no JSON at all").status == 200
        assert receiver.post(SAMPLE, at=time.time() - 4000).status == 401
        receiver.rows("SELECT 1")
        database = Database("sqlite:///var/receiver.db")
        now = datetime.now(UTC)
        # As an earlier version would have left it, that did not understand this body.
        row = {"endpoint": "default", "sent_at": now, "received_at": now, "digest": b"1", "reason": "not_json"}
        huge = SAMPLE.replace(b"REPLY_COMMAND_FINISH", b"OTHER")
        database.store([], [row | {"body": SAMPLE}, row | {"digest": b"2", "body": huge}])
        database.close()
        lines = invoke("quarantine", "list").output.splitlines()
        assert sorted(line.split()[4] for line in lines[1:]) == [
            "not_json",
            "not_json",
            "not_json",
            "stale",
        ]
        assert len(invoke("quarantine", "list", "--reason", "stale").output.splitlines()) == 2
        assert invoke("quarantine", "retry").output == "2 moved to the events, 2 left in the quarantine.\n"
        assert invoke("quarantine", "retry", "--stale").output == "1 moved to the events, 1 left in the quarantine.\n"
        assert len(receiver.rows("SELECT 1 FROM events WHERE digest IN (x'31', x'32')")) == 2
        assert [row["body"] for row in receiver.rows("SELECT body FROM quarantine")] == [b"no JSON at all"]


@pytest.mark.parametrize("limit", ["0", "-1", str(2**63)])
def test_wrong_limit(limit: str) -> None:
    """The quarantine is listed up to a number of rows that each database takes."""
    result = invoke("quarantine", "list", "--limit", limit)
    assert result.exit_code == 2
    assert "--limit" in result.stderr


def test_empty_quarantine(folder: Path) -> None:
    """An empty quarantine says so."""
    invoke("migrate", RECEIVER_KEY=KEY)
    assert invoke("quarantine", "list", RECEIVER_KEY=KEY).output == "The quarantine is empty.\n"
    assert (folder / "var").exists()
