"""What is answered 200 is stored with exactly the bytes that were sent, over sockets and with a real journal."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from tests.helpers.receiver import Process, running
from tests.helpers.requests import Sent, requests, statuses

EXAMPLES = 40


def exchange(receiver: Process, pieces: list[bytes]) -> list[int]:
    """What is answered to pieces that are sent apart."""
    received = b""
    with receiver.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):  # it may be closed before all is sent
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while chunk := connection.recv(65536):
                received += chunk
    return statuses(received)


def test_what_is_accepted_is_what_is_stored(tmp_path: Path) -> None:
    """Of generated requests, those that are answered 200 are in the database byte for byte, once, and no others."""
    accepted: list[bytes] = []
    with running(tmp_path, tls=False) as receiver:
        number = 0

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(requests(receiver.target(), b"MARKER"))
        def run(sent: Sent) -> None:
            nonlocal number
            number += 1
            marker = b"%06d" % number  # as long, so that the lengths stay right
            bodies = [body.replace(b"MARKER", marker) for body in sent.bodies]
            raw = b"".join(sent.pieces)
            # A marker that is cut by a chunk's end stays, and is the same in all requests: another is sent then.
            if raw.count(b"MARKER") != len(bodies):
                return
            pieces, raw = [], raw.replace(b"MARKER", marker)
            for piece in sent.pieces:
                pieces.append(raw[: len(piece)])
                raw = raw[len(piece) :]
            answers = exchange(receiver, pieces)
            assert set(answers) <= {200, 400}
            accepted.extend(body for body, status in zip(bodies, answers, strict=False) if status == 200)

        run()
        assert len(accepted) > EXAMPLES // 8  # chance may make few that are right
        stored = [row["body"] for row in receiver.rows("SELECT body FROM quarantine")]
        assert sorted(stored) == sorted(accepted)
        assert receiver.rows("SELECT 1 FROM events") == []
