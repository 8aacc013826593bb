"""nginx and caddy with the shipped configurations, in front of a receiver, and clients of theirs."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from tests.helpers.authority import Authority
from tests.helpers.caddy import CADDY
from tests.helpers.receiver import SAMPLES, Process, free_port, wait_until

CLIENT = "127.0.0.3"
SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]

_SHIPPED = Path(__file__).parents[2] / "deploy/proxy"
# What the head of nginx.conf says to set.
_NGINX_MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/main.log;
worker_rlimit_nofile 32768; events {{ worker_connections 16384; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/nginx.conf;
}}
"""


class Proxy:
    """A proxy in front of `receiver`, and a client of it."""

    def __init__(self, folder: Path, receiver: Process) -> None:
        self.folder = folder
        self.port = free_port()
        self.receiver = receiver
        self.process: subprocess.Popen[bytes] | None = None
        authority = Authority()
        authority.issue(folder / "fullchain.pem", folder / "privkey.pem")
        self._authority = authority.pem.decode()

    @property
    def trust(self) -> ssl.SSLContext:
        """What a client needs to trust this proxy."""
        return ssl.create_default_context(cadata=self._authority)

    def write(self, name: str, *changes: tuple[str, str]) -> None:
        """The shipped file with the operator's changes, each to something that is there."""
        text = (_SHIPPED / name).read_text()
        for old, new in (("127.0.0.1:8443", f"127.0.0.1:{self.receiver.port}"), *changes):
            assert old in text, old
            text = text.replace(old, new)
        (self.folder / name).write_text(text)

    def connection(self, source: str = CLIENT) -> http.client.HTTPSConnection:
        """A client's connection, from the address `source`."""
        return http.client.HTTPSConnection(
            "localhost", self.port, timeout=60, context=self.trust, source_address=(source, 0)
        )

    def connect(self, source: str = CLIENT, *, protocols: Sequence[str] = ()) -> ssl.SSLSocket:
        """The same without HTTP, with a choice of protocols."""
        context = self.trust
        context.set_alpn_protocols(protocols)
        plain = socket.create_connection(("127.0.0.1", self.port), 60, (source, 0))
        return context.wrap_socket(plain, server_hostname="localhost")

    def post(self, url: str, headers: dict[str, str] | None = None, *, source: str = CLIENT) -> int:
        """POST a sample to `url` as it stands, and return the status."""
        parts = urlsplit(url)
        with closing(self.connection(source)) as connection:
            connection.request("POST", f"{parts.path}?{parts.query}".rstrip("?"), SAMPLE, headers or {})
            return connection.getresponse().status

    def exchange(self, raw: bytes, *, protocols: tuple[str, ...] = ()) -> tuple[int, str | None]:
        """Send raw bytes, and return the status of the answer and the protocol that was agreed on in the handshake."""
        with self.connect(protocols=protocols) as client:
            with suppress(ConnectionError):  # it may answer, and close, before all is sent
                client.sendall(raw)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            return answer.status, client.selected_alpn_protocol()

    def is_up(self) -> bool:
        """Whether it serves."""
        try:
            return self.post("/") == http.HTTPStatus.NOT_FOUND
        except OSError:
            return False

    @property
    def logs(self) -> str:
        """All that it has written."""
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


@contextmanager
def _started(proxy: Proxy, command: list[str]) -> Iterator[Proxy]:
    environ = os.environ | {"XDG_DATA_HOME": str(proxy.folder), "XDG_CONFIG_HOME": str(proxy.folder)}
    with (proxy.folder / "output.log").open("wb") as output:
        process = proxy.process = subprocess.Popen(command, env=environ, cwd=proxy.folder, stdout=output, stderr=output)
    try:
        wait_until(lambda: proxy.is_up() or process.poll() is not None, "the proxy")
        assert process.poll() is None, proxy.logs
        yield proxy
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def nginx(folder: Path, receiver: Process, *changes: tuple[str, str]) -> Iterator[Proxy]:
    """Nginx, with `changes` beside those that an operator has to make."""
    proxy = Proxy(folder, receiver)
    proxy.write(
        "nginx.conf",
        ("listen 443 ssl", f"listen 127.0.0.1:{proxy.port} ssl"),
        ("listen [::]:443 ssl", f"listen [::1]:{proxy.port} ssl"),
        ("/etc/ssl/callbacks.example.com/", f"{folder}/"),
        ("server_name callbacks.example.com;", "server_name localhost;"),
        ("/var/log/nginx/", f"{folder}/"),
        *changes,
    )
    (folder / "main.conf").write_text(_NGINX_MAIN.format(folder=folder))
    with _started(proxy, ["nginx", "-p", str(folder), "-c", str(folder / "main.conf")]):
        yield proxy


@contextmanager
def caddy(folder: Path, receiver: Process, program: str = CADDY) -> Iterator[Proxy]:
    """The caddy that is shipped, or another `program`."""
    proxy = Proxy(folder, receiver)
    proxy.write(
        "Caddyfile",
        (
            "callbacks.example.com {\n",
            # With a certificate of its own, where the shipped file has caddy get one.
            f"https://localhost:{proxy.port} {{\n\ttls {folder}/fullchain.pem {folder}/privkey.pem\n",
        ),
        ("\tadmin off\n", "\tadmin off\n\tauto_https disable_redirects\n"),
        ("/var/log/caddy/", f"{folder}/"),
        ("lb_try_duration 15s", "lb_try_duration 1s"),
    )
    with _started(proxy, [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]):
        yield proxy


SERVE: dict[str, Callable[[Path, Process], AbstractContextManager[Proxy]]] = {
    "nginx": nginx,
    "caddy": caddy,
    "Debian's caddy": partial(caddy, program="caddy"),
}
