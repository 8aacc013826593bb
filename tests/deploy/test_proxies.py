"""The shipped configurations in real proxies, with TLS to the client and a receiver on plain HTTP behind them."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from receiver.protocol.signature import AuthType, sign
from tests.helpers.authority import Authority
from tests.helpers.receiver import KEY, SAMPLES, Process, free_port, running, wait_until

SHIPPED = Path(__file__).parents[2] / "deploy/proxy"
# In an order, and with an encoding, that tidy proxies would change.
QUERY_URL = "https://callbacks.example.com/callbacks/a%2Fb//%E5%95%86?z=%7E1&a=%2f+x&z=0&empty=&flag"
HEADERS_URL = "https://callbacks.example.com/callbacks/headers"
CLIENT = "127.0.0.3"
SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]
CONFIGURATION = f"""
[[endpoints]]
name = "query"
live_event_type_callback_url = "{QUERY_URL}"
key = "{KEY}"
signature_form = "host-registered-hex"

[[endpoints]]
name = "headers"
live_event_type_callback_url = "{HEADERS_URL}"
auth_type = "MSS_A_HEAD"
key = "{KEY}"
"""
NGINX_MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/main.log; events {{}}
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
        authority = Authority()
        authority.issue(folder / "fullchain.pem", folder / "privkey.pem")
        self._trust = ssl.create_default_context(cadata=authority.pem.decode())

    def write(self, name: str, *changes: tuple[str, str]) -> None:
        """The shipped file with the operator's changes, each to something that is there."""
        text = (SHIPPED / name).read_text()
        for old, new in (("127.0.0.1:8443", f"127.0.0.1:{self.receiver.port}"), *changes):
            assert old in text, old
            text = text.replace(old, new)
        (self.folder / name).write_text(text)

    def post(self, url: str, headers: dict[str, str] | None = None) -> int:
        """POST a sample to `url` as it stands, and return the status."""
        parts = urlsplit(url)
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=60, context=self._trust, source_address=(CLIENT, 0)
        )
        with closing(connection):
            connection.request("POST", f"{parts.path}?{parts.query}".rstrip("?"), SAMPLE, headers or {})
            return connection.getresponse().status

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
def started(proxy: Proxy, command: list[str]) -> Iterator[Proxy]:
    environ = os.environ | {"XDG_DATA_HOME": str(proxy.folder), "XDG_CONFIG_HOME": str(proxy.folder)}
    with (proxy.folder / "output.log").open("wb") as output:
        process = subprocess.Popen(command, env=environ, cwd=proxy.folder, stdout=output, stderr=output)
    try:
        wait_until(lambda: proxy.is_up() or process.poll() is not None, "the proxy")
        assert process.poll() is None, proxy.logs
        yield proxy
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def nginx(folder: Path, receiver: Process) -> Iterator[Proxy]:
    proxy = Proxy(folder, receiver)
    proxy.write(
        "nginx.conf",
        ("listen 443 ssl", f"listen 127.0.0.1:{proxy.port} ssl"),
        ("listen [::]:443 ssl", f"listen [::1]:{proxy.port} ssl"),
        ("/etc/ssl/callbacks.example.com/", f"{folder}/"),
        ("/var/log/nginx/", f"{folder}/"),
    )
    (folder / "main.conf").write_text(NGINX_MAIN.format(folder=folder))
    with started(proxy, ["nginx", "-p", str(folder), "-c", str(folder / "main.conf")]):
        yield proxy


@contextmanager
def caddy(folder: Path, receiver: Process) -> Iterator[Proxy]:
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
    with started(proxy, ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]):
        yield proxy


@pytest.mark.parametrize("serve", [nginx, caddy])
def test_behind_a_proxy(tmp_path: Path, serve: Callable[[Path, Process], AbstractContextManager[Proxy]]) -> None:
    """Callbacks of both kinds pass unaltered, with their client's address; no log holds a query or a signature."""
    (tmp_path / "some.toml").write_text(CONFIGURATION)
    (tmp_path / "proxy").mkdir()
    with (
        running(tmp_path, tls=False, RECEIVER_CONFIG="some.toml", RECEIVER_TRUSTED_PROXIES="127.0.0.1") as receiver,
        serve(tmp_path / "proxy", receiver) as proxy,
    ):
        by_query = sign(QUERY_URL, KEY, time.time(), form="host-registered-hex")
        by_headers = sign(HEADERS_URL, KEY, time.time(), auth_type=AuthType.MSS_A_HEAD)
        assert proxy.post(by_query.url) == 200
        assert proxy.post(by_headers.url, by_headers.headers) == 200
        assert receiver.metric("signature_matches_total", "query", "host-registered-hex", "current") == 1

        invented = {"X-Forwarded-For": "203.0.113.1", "Forwarded": "for=203.0.113.2"}
        assert proxy.post(f"{QUERY_URL}&hwSecret={'0' * 64}&hwTime=5f", invented) == 401
        rejected = [json.loads(line) for line in receiver.log.splitlines() if "callback rejected" in line]
        assert {line["client"] for line in rejected} == {CLIENT}

        receiver.stop()
        assert proxy.post(by_query.url) == 502
        assert proxy.post(by_headers.url, by_headers.headers) == 502
    secrets = [by_query.url.rpartition("hwSecret=")[2][:64], *by_headers.headers.values()]
    wait_until(lambda: len(re.findall(r"/callbacks/headers", proxy.logs)) >= 2, "the access log")
    for secret in (*secrets, "hwSecret", "hwTime", "empty="):
        assert secret not in proxy.logs
