"""The shipped configurations in real proxies, with TLS to the client and a receiver on plain HTTP behind them."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from receiver.protocol.signature import AuthType, sign
from tests.helpers.proxies import CLIENT, SAMPLE, SERVE, Proxy, nginx
from tests.helpers.receiver import KEY, Process, running, wait_until

# In an order, and with an encoding, that tidy proxies would change.
QUERY_URL = "https://callbacks.example.com/callbacks/a%2Fb//%E5%95%86?z=%7E1&a=%2f+x&z=0&empty=&flag"
HEADERS_URL = "https://callbacks.example.com/callbacks/headers"
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    (0, 0, 0, 4, 0, 0, 0, 0, 0)
)  # as who knows that it is spoken begins
LIMIT = 2**20  # of a body: the default of max_body_bytes
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
Serve = Callable[[Path, Process], AbstractContextManager[Proxy]]


@contextmanager
def behind(serve: Serve, folder: Path) -> Iterator[Proxy]:
    """A proxy with a receiver behind it, which trusts it."""
    (folder / "some.toml").write_text(CONFIGURATION)
    (folder / "proxy").mkdir()
    with (
        running(folder, tls=False, RECEIVER_CONFIG="some.toml", RECEIVER_TRUSTED_PROXIES="127.0.0.1") as receiver,
        serve(folder / "proxy", receiver) as proxy,
    ):
        yield proxy


@pytest.fixture(scope="module", params=SERVE)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with behind(SERVE[request.param], tmp_path_factory.mktemp("proxies")) as proxy:
        yield proxy


def head(*headers: str, host: str = "localhost") -> bytes:
    """The head of a callback that is signed right."""
    signed = urlsplit(sign(QUERY_URL, KEY, time.time(), form="host-registered-hex").url)
    lines = (f"POST {signed.path}?{signed.query} HTTP/1.1", f"Host: {host}", *headers, "", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("serve", SERVE.values(), ids=SERVE)
def test_behind_a_proxy(tmp_path: Path, serve: Serve) -> None:
    """Callbacks of both kinds pass unaltered, with their client's address; no log holds a query or a signature."""
    with behind(serve, tmp_path) as proxy:
        receiver = proxy.receiver
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


@pytest.mark.parametrize("host", ["other.example.com", "127.0.0.1", "localhost.example.com"])
def test_an_unknown_host_is_misdirected(proxy: Proxy, host: str) -> None:
    """What is asked of another name than the proxy's is answered 421, and never looks like a callback accepted."""
    assert proxy.exchange(head("Content-Length: 2", host=host) + b"{}")[0] == 421


@pytest.mark.parametrize("host", ["LocalHost", "localhost:443"])
def test_its_own_host_however_written(proxy: Proxy, host: str) -> None:
    """The proxy's name is the same in any case, with and without a port."""
    assert proxy.exchange(head(f"Content-Length: {len(SAMPLE)}", host=host) + SAMPLE)[0] == 200


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("coding", ["declared", "chunked"])
def test_a_body_at_the_limit(proxy: Proxy, coding: str, over: int, request: pytest.FixtureRequest) -> None:
    """A body of exactly the receiver's limit is accepted and stored whole; of one byte more it is answered 413."""
    body = SAMPLE + b" " * (LIMIT - len(SAMPLE) + over)
    if coding == "declared":
        raw = head(f"Content-Length: {len(body)}") + body
    else:
        raw = head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    refused = {413}
    if coding == "declared" and "caddy" in request.node.callspec.params["proxy"]:
        refused.add(502)  # where the receiver, which reads none of it, has closed before caddy has read its answer
    assert proxy.exchange(raw)[0] in (refused if over else {200})
    stored = {row[0] for row in proxy.receiver.rows("SELECT length(body) FROM events WHERE length(body) > 1000")}
    assert stored <= {LIMIT}
    assert stored or over


@pytest.mark.parametrize("name", ["Content-Length(", "Content Length", "\xa0Content-Length"])
def test_a_malformed_header_is_not_left_out(proxy: Proxy, name: str) -> None:
    """What would have no body if its malformed header were passed over is refused."""
    assert proxy.exchange(head(f"{name}: {len(SAMPLE)}") + SAMPLE)[0] == 400


def test_http_2_is_not_offered(proxy: Proxy) -> None:
    """Who would rather have HTTP/2 gets HTTP/1.1, one request at a time; who wants nothing else is refused."""
    raw = head(f"Content-Length: {len(SAMPLE)}") + SAMPLE
    assert proxy.exchange(raw, protocols=("h2", "http/1.1")) == (200, "http/1.1")
    with pytest.raises(ssl.SSLError):
        proxy.exchange(raw, protocols=("h2",))
    assert proxy.exchange(HTTP_2)[0] >= 400
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as quic:  # of HTTP/3
        quic.bind(("127.0.0.1", proxy.port))


def test_a_burst_of_callbacks_is_not_limited(proxy: Proxy) -> None:
    """Several hundred callbacks at once from one address, each on a connection of its own, are all accepted."""
    url = sign(QUERY_URL, KEY, time.time(), form="host-registered-hex").url
    with ThreadPoolExecutor(50) as pool:
        assert Counter(pool.map(lambda _: proxy.post(url), range(400))) == {200: 400}


def test_nginx_limits_the_rate_of_an_address(tmp_path: Path) -> None:
    """An address that asks too often is answered 429, and others are served meanwhile."""
    few = ("rate=1000r/s", "rate=1r/m"), ("burst=5000", "burst=20")

    with behind(lambda folder, receiver: nginx(folder, receiver, *few), tmp_path) as proxy:
        statuses = Counter(proxy.post("/", source="127.0.0.9") for _ in range(30))
        assert statuses == {404: 21, 429: 9}
        assert proxy.post("/", source="127.0.0.8") == 404


def test_nginx_limits_the_requests_of_an_address_at_once(tmp_path: Path) -> None:
    """An address with as many requests under way as it may have is answered 429, and others are served meanwhile."""
    few = ("limit_conn callbacks 256", "limit_conn callbacks 3")
    with behind(lambda folder, receiver: nginx(folder, receiver, few), tmp_path) as proxy:
        waiting = [proxy.connection("127.0.0.9") for _ in range(3)]
        for connection in waiting:
            connection.putrequest("POST", "/")
            connection.putheader("Content-Length", "5")
            connection.endheaders(b"half")
        wait_until(lambda: proxy.post("/", source="127.0.0.9") == 429, "the limit")
        assert proxy.post("/", source="127.0.0.8") == 404
        for connection in waiting:
            connection.close()
        wait_until(lambda: proxy.post("/", source="127.0.0.9") == 404, "a place again")
