"""Connections to PostgreSQL: what the URL and libpq's own files say of them, and what an error says of the server."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import URL, text
from sqlalchemy.exc import OperationalError

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.engine import Deadline, connect
from receiver.database.errors import problem_of, remedy_of
from tests.helpers.database import sql
from tests.helpers.postgres import PrivatePostgreSQL
from tests.helpers.receiver import KEY, SAMPLES, free_port, running, wait_until

PASSWORD = "QX@/#Z:%J[é"
START = "postgresql+psycopg://"


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgreSQL]:
    """A server that asks for a password by TCP."""
    with tempfile.TemporaryDirectory(prefix="connection-") as folder:
        created = PrivatePostgreSQL(Path(folder))
        rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (created.folder / "data/pg_hba.conf").write_text(rules)
        created.start()
        try:
            superuser = created.url.render_as_string(hide_password=False)
            sql(superuser, f"CREATE ROLE receiver LOGIN PASSWORD '{PASSWORD}'".replace(":", r"\:"))
            sql(superuser, "GRANT CREATE ON SCHEMA public TO receiver")
            yield created
        finally:
            created.stop()


@pytest.fixture
def url(server: PrivatePostgreSQL) -> str:
    """Its URL by TCP, without a query."""
    created = URL.create("postgresql+psycopg", "receiver", PASSWORD, "127.0.0.1", server.port, "postgres")
    return created.render_as_string(hide_password=False)


def shown(url: str, *names: str) -> list[str]:
    """What these settings are in a transaction."""
    with closing(Database(url)) as database, database.transaction() as connection:
        return [str(connection.scalar(text(f"SHOW {name}"))) for name in names]


def test_name_and_keepalives(url: str) -> None:
    """The session has the receiver's name, and neither side keeps it for hours when the other cannot be reached."""
    names = ["application_name", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"]
    assert shown(url, *names, "tcp_user_timeout") == ["metastudio-receiver", "60", "10", "3", "60000"]
    engine = connect(url)
    with closing(engine.raw_connection()) as connection:
        assert connection.driver_connection is not None
        with socket.socket(fileno=connection.driver_connection.fileno()) as own:
            found = [own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            found += [own.getsockopt(socket.IPPROTO_TCP, option) for option in options]
            own.detach()
    engine.dispose()
    assert found == [1, 30, 10, 3, 60_000]


def test_what_the_url_sets_counts(url: str) -> None:
    """The URL's own settings are in force in place of the receiver's, but for those it relies on."""
    options = "-c statement_timeout=7s -c tcp_keepalives_idle=99 -c jit=on -c datestyle=German -c work_mem=5MB"
    own = f"{url}?application_name=mine&keepalives_idle=77&options={options.replace(' ', '%20')}"
    names = ["application_name", "statement_timeout", "tcp_keepalives_idle", "jit", "work_mem", "lock_timeout"]
    assert shown(own, *names, "datestyle") == ["mine", "7s", "99", "on", "5MB", "5s", "ISO, MDY"]


def test_environment_counts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libpq's variables count where the URL says nothing."""
    monkeypatch.setenv("PGAPPNAME", "from the environment")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    with pytest.raises(OperationalError, match="hot standby"):
        shown(url, "application_name")
    assert shown(f"{url}?target_session_attrs=any", "application_name") == ["from the environment"]


def test_service_socket_and_passfile(
    server: PrivatePostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service, a file of passwords and a socket's folder lead to the server as they do for psql."""
    service, passwords = tmp_path / "services", tmp_path / "passwords"
    service.write_text(
        f"[events]\nhost=127.0.0.1\nport={server.port}\nuser=receiver\ndbname=postgres\ntarget_session_attrs=any\n"
    )
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passwords.write_text(f"127.0.0.1:{server.port}:*:receiver:{escaped}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    for without_password in (
        f"{START}?service=events",
        f"{START}/?service=events",
        f"{START}receiver@127.0.0.1:{server.port}/postgres",
        f"{START}receiver@/postgres?host={server.folder}&port={server.port}",
    ):
        done = CliRunner().invoke(
            main, ["migrate"], env={"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": without_password}
        )
        assert done.exit_code == 0, done.output
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    with pytest.raises(OperationalError, match="no password supplied"):
        shown(f"{START}?service=events", "jit")


def test_several_hosts(server: PrivatePostgreSQL, url: str) -> None:
    """The server that can be written to is found among several; where there is none, each is named with its problem."""
    nobody = free_port()
    user = url.partition("@")[0]
    several = f"{user}@/postgres?host=127.0.0.1:{nobody}&host=127.0.0.1:{{}}"
    assert shown(several.format(server.port), "transaction_read_only") == ["off"]
    with pytest.raises(OperationalError) as caught:
        shown(several.format(nobody), "jit")
    problem = problem_of(caught.value)
    assert problem.count("Connection refused") == 2
    assert problem.endswith(f"(127.0.0.1:{nobody}, 127.0.0.1:{nobody})")


def test_server_that_does_not_answer() -> None:
    """An attempt that times out names the server, within the URL's own connect_timeout, in each command."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"{START}receiver:{'QX' * 4}@127.0.0.1:{port}/postgres?connect_timeout=2"
        done = CliRunner().invoke(main, ["migrate"], env={"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": url})
    assert done.exit_code == 1
    assert "QX" not in done.output
    assert done.stderr == (
        f"Error: database_url: ConnectionTimeout: connection timeout expired (127.0.0.1 port {port}): see that"
        " `database_url` is right, and that the server is up and can be reached from here\n"
    )


def test_transaction_that_is_cut_off(url: str) -> None:
    """A transaction that ends at the deadline on this side says so, with the server and after how long."""
    engine = connect(url)
    deadline = Deadline(engine, 0.5)
    with pytest.raises(OperationalError) as caught, deadline.watch(), engine.begin() as connection:
        connection.execute(text("SELECT pg_sleep(9)"))
    engine.dispose()
    port = url.rpartition(":")[2].partition("/")[0]
    assert problem_of(caught.value) == f"TimeoutError: no answer for 0.5 s (127.0.0.1 port {port})"


def with_short_deadline(url: str) -> Database:
    """A database that asks every third of a second whether the server answers, while it reads."""
    database = Database(url)
    vars(database)["_deadline"] = Deadline(vars(database)["_engine"], 0.3)
    return database


def test_long_reading(url: str) -> None:
    """A query may take longer than the deadline, as long as the server answers others."""
    with closing(with_short_deadline(f"{url}?connect_timeout=60")) as database, database.reading() as connection:
        assert connection.scalar(text("SELECT 1 FROM pg_sleep(2)")) == 1


def test_reading_when_nobody_is_answered(server: PrivatePostgreSQL, url: str) -> None:
    """When a server freezes while it reads for a command, the command ends and says so."""

    def read(database: Database) -> None:
        with database.reading() as connection:
            server.freeze()
            connection.scalar(text("SELECT 1"))

    with closing(with_short_deadline(f"{url}?connect_timeout=2")) as database:
        try:
            with pytest.raises(OperationalError, match="no answer"):
                read(database)
        finally:
            server.thaw()


def test_remedies(server: PrivatePostgreSQL, url: str) -> None:
    """What an error says to do fits what the server has said."""
    wrong = url.replace("receiver:", "receiver:not-")
    cases = {
        wrong: "correct the user or the password",
        url.replace("/postgres", "/nothing"): "make it on the server",
        f"{START}receiver@no-such-host.invalid/postgres": "correct the host",
        f"{START}receiver@127.0.0.1:{free_port()}/postgres": "see that `database_url` is right",
        f"{url}?target_session_attrs=standby": "one of them is the primary",
        f"{START}receiver@/postgres?host={server.folder}": "see that `database_url` is right",
    }
    for address, remedy in cases.items():
        with pytest.raises(OperationalError) as caught:
            shown(address, "jit")
        assert remedy in remedy_of(caught.value), problem_of(caught.value)


def test_file_that_is_no_database(tmp_path: Path) -> None:
    """What to do about a file that SQLite cannot read is not about servers."""
    (tmp_path / "receiver.db").write_text("something else")
    environ = {"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": f"sqlite:///{tmp_path}/receiver.db"}
    done = CliRunner().invoke(main, ["history"], env=environ)
    assert done.exit_code == 1
    assert "file is not a database: correct `database_url`, or restore the file from a backup" in done.stderr


def test_serving_shows_no_password(server: PrivatePostgreSQL, url: str, tmp_path: Path) -> None:
    """Neither the banner nor the log of a receiver whose database fails shows a part of an awkward password."""
    wrong = url.replace("/postgres", "/nothing")
    with running(tmp_path, tls=False, RECEIVER_DATABASE_URL=wrong) as receiver:
        wait_until(lambda: "database down" in receiver.log, "the line that it is away")
    said = receiver.log + (tmp_path / "serve.out").read_text()
    assert f"receiver:***@127.0.0.1:{server.port}/nothing" in said
    assert '"since": "' in said
    assert not [PASSWORD[at : at + 2] for at in range(len(PASSWORD) - 1) if PASSWORD[at : at + 2] in said]


def test_password_that_changes(server: PrivatePostgreSQL, url: str, tmp_path: Path) -> None:
    """A receiver stores again once the file of its URL holds the role's new password, and so does each command.

    Neither is started anew, and none of the passwords is shown.
    """
    superuser = server.url.render_as_string(hide_password=False)
    file, changed = tmp_path / "database-url", url.replace("receiver:", "receiver:new-")
    file.write_text(f"{url}\n")
    command = {"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL_FILE": str(file)}
    assert CliRunner().invoke(main, ["migrate"], env=command).exit_code == 0

    def count() -> object:
        return sql(superuser, "SELECT count(*) AS count FROM events")[0]["count"]

    with running(tmp_path, RECEIVER_DATABASE_URL_FILE=str(file)) as receiver:
        receiver.post(SAMPLES["SHOOT_SCRIPT_SWITCH"])
        wait_until(lambda: count() == 1, "the first event")
        try:
            sql(superuser, f"ALTER ROLE receiver PASSWORD '{'new-' + PASSWORD}'".replace(":", r"\:"))
            sql(superuser, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'receiver'")
            wait_until(lambda: "password authentication failed" in receiver.log, "what is wrong")
            assert receiver.post(SAMPLES["REPLY_COMMAND_FINISH"]).status == 200
            failed = CliRunner().invoke(main, ["doctor", "--database"], env=command)
            assert (failed.exit_code, "correct the user or the password" in failed.stderr) == (1, True)
            assert count() == 1
            file.write_text("no URL\n")
            wait_until(lambda: "database_url_file: is neither" in receiver.log, "what is wrong with the file")
            new = tmp_path / "new"
            new.write_text(f"{changed}\n")
            new.replace(file)
            wait_until(lambda: count() == 2, "the second event")
            wait_until(lambda: "database up again" in receiver.log, "the end of the outage")
            shown = CliRunner().invoke(main, ["doctor", "--database"], env=command)
            assert shown.exit_code == 0, shown.output
            assert receiver.metric("projector_restarts_total") == 0
        finally:
            sql(superuser, f"ALTER ROLE receiver PASSWORD '{PASSWORD}'".replace(":", r"\:"))
        assert receiver.stop() == 0
        texts = (receiver.log, (tmp_path / "serve.out").read_text(), failed.output, shown.output)
        assert all(part not in text for text in texts for part in ("QX", "%23Z", "new-"))
