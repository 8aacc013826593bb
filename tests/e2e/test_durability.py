"""200 means kept: restarts, crashes, a full journal, a database that is away."""

from __future__ import annotations

import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

from receiver.database.migration import REVISION
from receiver.tools.bootstrap import self_signed
from tests.helpers.receiver import SAMPLES, refused, running, wait_until

SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]


def distinct(number: int, size: int = 0) -> bytes:
    return SAMPLE.replace(b"Paragraph 2", b"Paragraph %d" % number) + b" " * size


def test_restart_resumes_where_it_stopped(tmp_path: Path) -> None:
    """What was accepted while the database was away is stored after kill -9 and a restart, once."""
    (tmp_path / "var/receiver.db").mkdir(parents=True)  # no database can be there
    with running(tmp_path) as receiver:
        for number in range(20):
            assert receiver.post(distinct(number)).status == 200
        assert receiver.metric("journal_events") == 20
        assert receiver.metric("database_up") == 0
        assert receiver.operations("/readyz").status == 200
        assert receiver.stop(signal.SIGKILL) == -signal.SIGKILL
    (tmp_path / "var/receiver.db").rmdir()
    with running(tmp_path) as receiver:
        rows = receiver.rows("SELECT shoot_script_title FROM events ORDER BY received_at")
        assert [row[0] for row in rows] == [f"Paragraph {number}" for number in range(20)]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Where the database's folder cannot be made, callbacks are kept until it can."""
    folder = tmp_path / "elsewhere"
    folder.write_bytes(b"no folder")
    with running(tmp_path, RECEIVER_DATABASE_URL=f"sqlite:///{folder}/receiver.db") as receiver:
        assert receiver.post(SAMPLE).status == 200
        wait_until(lambda: '"database down"' in receiver.log, "the line that it is away")
        assert f"{folder}/receiver.db" in receiver.log
        folder.unlink()
        wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")
        assert (folder / "receiver.db").is_file()


def test_database_comes_back(tmp_path: Path) -> None:
    """A database that was away is used again without a restart; one line says when it went and one when it came."""
    (tmp_path / "var/receiver.db").mkdir(parents=True)
    with running(tmp_path) as receiver:
        assert receiver.post(SAMPLE).status == 200
        wait_until(lambda: receiver.metric("projector_errors_total", "connection") >= 3, "attempts")
        (tmp_path / "var/receiver.db").rmdir()
        assert len(receiver.rows("SELECT 1 FROM events")) == 1
        wait_until(lambda: receiver.log.count('"database up again"') == 1, "the line that it is back")
        assert receiver.metric("database_up") == 1


def test_full_journal(tmp_path: Path) -> None:
    """A full journal is answered 503 with Retry-After and makes unready; when it has drained all is well by itself."""
    (tmp_path / "var/receiver.db").mkdir(parents=True)
    with running(tmp_path, RECEIVER_JOURNAL_MAX_BYTES=str(2**20)) as receiver:
        accepted = 0
        for size in (60_000, 0):
            while (answer := receiver.post(distinct(accepted, size))).status == 200:
                accepted += 1
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert receiver.operations("/readyz").status == 503
        assert receiver.metric("callbacks_rejected_total", "default", "not_durable") == 2
        assert receiver.metric("journal_events") == accepted > 10
        (tmp_path / "var/receiver.db").rmdir()
        assert len(receiver.rows("SELECT 1 FROM events")) == accepted
        assert receiver.post(SAMPLE).status == 200
        assert receiver.operations("/readyz").status == 200


def test_half_a_body_does_not_block_the_end(tmp_path: Path) -> None:
    """SIGTERM ends a receiver in whose middle a client stopped sending; nothing is answered 500."""
    with running(tmp_path) as receiver, receiver.connect() as connection:
        connection.sendall(f"POST {receiver.target()} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{{".encode())
        assert receiver.post(SAMPLE).status == 200
        assert receiver.stop() == 0
        answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503") or not answer


def test_second_receiver_on_one_journal(tmp_path: Path) -> None:
    """A second receiver on the same journal refuses to start and says why."""
    with running(tmp_path) as receiver:
        assert "in use by another receiver" in refused(tmp_path)
        assert receiver.post(SAMPLE).status == 200


def test_port_that_is_taken(tmp_path: Path) -> None:
    """A port that another program has, or another receiver has for its operations, is named with its setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Error: listen: cannot" in refused(tmp_path, RECEIVER_LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
    with running(tmp_path) as receiver:
        environ = {"RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{receiver.operations_port}"}
        assert "operations_listen: cannot" in refused(tmp_path, RECEIVER_JOURNAL="var/other.db", **environ)


def test_newer_database(tmp_path: Path) -> None:
    """A database that is newer than the program is left alone, with the advice to upgrade; callbacks are kept."""
    with running(tmp_path) as receiver:
        assert receiver.rows("SELECT * FROM alembic_version")
    sql = "UPDATE alembic_version SET version_num = "
    write(tmp_path, f"{sql}'9999'")
    with running(tmp_path) as receiver:
        assert receiver.post(SAMPLE).status == 200
        wait_until(lambda: "newer than this receiver: upgrade" in receiver.log, "the advice")
        assert receiver.metric("journal_events") == 1
        write(tmp_path, f"{sql}'{REVISION}'")
        assert len(receiver.rows("SELECT 1 FROM events")) == 1


def write(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "var/receiver.db")) as connection, connection:
        connection.execute(statement)


def test_wrong_certificate(tmp_path: Path) -> None:
    """A certificate and a key that cannot be used are named."""
    (tmp_path / "other.key").write_bytes(self_signed()[1])
    assert "do not belong together" in refused(tmp_path, RECEIVER_TLS_KEY=str(tmp_path / "other.key"))
