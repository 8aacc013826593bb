"""A real receiver in a process of its own, and clients that speak to it over sockets and TLS."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from receiver.protocol.signature import AuthType, sign
from receiver.tools.bootstrap import self_signed

_CHANCE = random.SystemRandom()
_PORTS_EACH = 4_400
KEY = "0123456789abcdefThis-Is-The-Key"
SAMPLES = {
    "SHOOT_SCRIPT_SWITCH": rb"""{"event_type":  "SHOOT_SCRIPT_SWITCH", "message":"{\"room_id\":\"26f065244f754b3aa853b649a21aaf66\",\"job_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\",\"scene_script_name\":\"Product 1\",\"shoot_script_sequence_no\":\"2\",\"shoot_script_title\":\"Paragraph 2\"}"}""",  # noqa: E501
    "RTMP_STREAM_STATE_CHANGE": rb"""{"event_type":  "RTMP_STREAM_STATE_CHANGE", "message":"{\"room_id\":\"26f065244f754b3aa853b649a21aaf66\",\"job_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\",\"output_url\":\"rtmp://xxx/xx/xx\",\"stream_key\":\"xxxxx\",\"state\":\"CONNECTED\"}"}""",
    "REPLY_COMMAND_FINISH": rb"""{"event_type":  "REPLY_COMMAND_FINISH", "message":"{\"room_id\":\"26f065244f754b3aa853b649a21aaf66\",\"job_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\",\"reply_id\":\"e87104f76d7546ce8a46ac6b04c49c3c"}"}""",  # noqa: E501
}


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: bytes
    headers: dict[str, str]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait for `condition` to be true and return its value; fails, naming `what`, when it takes for ever."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)
    return value


def is_alive(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and is not waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _ports() -> Iterator[int]:
    """The ports that this test process may take, from anywhere on and round and round.

    Each of pytest-xdist's processes has its own, and none comes twice in a row: a port that was free when it was
    picked is still free when, some time later, a server listens on it. No client is given one: those have the ports
    from 32768 on.
    """
    first = 10_000 + _PORTS_EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 5)
    for number in count(_CHANCE.randrange(_PORTS_EACH)):
        yield first + number % _PORTS_EACH


_PORTS = _ports()


def free_port() -> int:
    """A port that nothing listens on, and that no other test is given meanwhile."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Process:
    """`receiver serve` in `folder`; `environ` are settings by their environment variables."""

    def __init__(self, folder: Path, *, tls: bool = True, **environ: str) -> None:
        self.folder = folder
        self.port, self.operations_port = free_port(), free_port()
        self.tls = tls
        self.url = f"https://localhost:{self.port}/callbacks/metastudio"
        self.environ = {
            "RECEIVER_LISTEN": f"127.0.0.1:{self.port}",
            "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{self.operations_port}",
        }
        if tls:
            certificate, key = folder / "tls.crt", folder / "tls.key"
            if not certificate.exists():
                pem_certificate, pem_key = self_signed()
                certificate.write_bytes(pem_certificate)
                key.write_bytes(pem_key)
            self.environ |= {"RECEIVER_TLS_CERTIFICATE": str(certificate), "RECEIVER_TLS_KEY": str(key)}
        if "RECEIVER_CONFIG" not in environ:
            self.environ |= {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": self.url, "RECEIVER_KEY": KEY}
        self.environ |= environ
        self.url = self.environ.get("RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL", self.url)
        self.log_file = folder / "serve.log"
        self.prefix: Sequence[str] = ()  # what stands in front of its command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        """Start, and wait until it says that it receives."""
        out = self.folder / "serve.out"
        with out.open("wb") as stdout, self.log_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "receiver", "serve"],
                cwd=self.folder,
                env=os.environ | self.environ,
                stdout=stdout,
                stderr=stderr,
            )
        wait_until(
            lambda: b"  next  " in out.read_bytes() or self.process.poll() is not None, "the receiver's first words"
        )
        assert self.process.poll() is None, self.log
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, once started."""
        assert self._process is not None
        return self._process

    @property
    def worker(self) -> int:
        """The process id of the projector's worker, once there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found: str = wait_until(lambda: children.read_text().strip(), "a worker")
        return int(found.rsplit(maxsplit=1)[-1])

    def processor_seconds(self) -> float:
        """What the process that answers has used of a processor."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def trust(self) -> ssl.SSLContext:
        """What a client needs to trust this receiver."""
        return ssl.create_default_context(cafile=str(self.folder / "tls.crt"))

    def connect(self) -> socket.socket:
        """A connection to the public listener, with TLS where it has it."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return self.trust.wrap_socket(plain, server_hostname="localhost") if self.tls else plain

    def connection(self, source: str = "127.0.0.1", timeout: float = 60) -> http.client.HTTPConnection:
        """The same for HTTP, from the address `source`."""
        options: dict[str, Any] = {"timeout": timeout, "source_address": (source, 0)}
        if self.tls:
            return http.client.HTTPSConnection("localhost", self.port, context=self.trust, **options)
        return http.client.HTTPConnection("localhost", self.port, **options)

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        with closing(self.connection()) as connection:
            connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            return Answer(
                response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
            )

    def target(self, at: float | None = None, **options: Any) -> str:
        """The signed path and query to post to."""
        parts = urlsplit(sign(self.url, KEY, time.time() if at is None else at, **options).url)
        return f"{parts.path}?{parts.query}"

    def post(self, body: bytes, *, at: float | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Post `body` with the right signature in the query."""
        return self.request("POST", self.target(at), body, headers)

    def post_with_headers(self, body: bytes) -> Answer:
        """Post `body` with the right signature in the headers."""
        signed = sign(self.url, KEY, time.time(), auth_type=AuthType.MSS_A_HEAD)
        return self.request("POST", urlsplit(signed.url).path, body, signed.headers)

    def exchange(self, raw: bytes, answers: int = 1) -> bytes:
        """Send raw bytes, and read until there are `answers` whole answers or the server closes."""
        with self.connect() as connection:
            connection.sendall(raw)
            received = b""
            while not _holds_answers(received, answers):
                chunk = connection.recv(65536)
                if not chunk:
                    break
                received += chunk
            return received

    def operations(self, path: str) -> Answer:
        """GET from the operations listener."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.operations_port}{path}", timeout=60) as response:
                return Answer(response.status, response.read(), dict(response.headers))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), dict(error.headers))

    def metrics(self) -> dict[tuple[str, frozenset[str]], float]:
        """All samples, by name and label values."""
        families = text_string_to_metric_families(self.operations("/metrics").body.decode())
        return {
            (sample.name.removeprefix("metastudio_"), frozenset(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }

    def metric(self, name: str, *labels: str) -> float:
        """One sample."""
        return self.metrics()[name, frozenset(labels)]

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        """What the SQLite database answers, once its schema is there and nothing is left in the journal."""
        wait_until(lambda: self.metric("database_up") == 1 and self.metric("journal_events") == 0, "an empty journal")
        with closing(sqlite3.connect(self.folder / "var/receiver.db")) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, parameters).fetchall()


def _holds_answers(received: bytes, answers: int) -> bool:
    for _ in range(answers):
        head, end, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not end or length is None or len(rest) < int(length[1]):
            return False
        received = rest[int(length[1]) :]
    return True


@contextmanager
def running(folder: Path, *, tls: bool = True, prefix: Sequence[str] = (), **environ: str) -> Iterator[Process]:
    """A receiver that is killed at the end if it still runs; `prefix` is what stands in front of its command."""
    process = Process(folder, tls=tls, **environ)
    process.prefix = prefix
    try:
        yield process.start()
    finally:
        if process.process.poll() is None:
            process.stop()


def refused(folder: Path, **environ: str) -> str:
    """What a receiver says that does not start."""
    process = Process(folder, tls=True, **environ)
    done = subprocess.run(
        [sys.executable, "-m", "receiver", "serve"], cwd=folder, env=process.environ, capture_output=True, check=False
    )
    assert done.returncode == 1
    text = done.stderr.decode()
    assert text.count("\n") == 1
    return text
