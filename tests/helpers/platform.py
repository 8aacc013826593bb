"""A stub of the platform's HTTP API: it checks each request's signature itself, and does what the real one may do."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

Json = dict[str, Any]

PROJECT = "0123456789abcdef0123456789abcdef"
ACCESS_KEY, SECRET_KEY = "AKOFTHETESTS", "the-secret-key-of-the-tests"
REPORT_URL = "https://report.example.com/secret-of-the-report-url"
_ALGORITHM = "SDK-HMAC-SHA256"
_MOST = 100  # jobs on a page
_PREFIX = f"/v1/{PROJECT}/"


class Request(NamedTuple):
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


class Answer(NamedTuple):
    """What is answered; bytes are sent as they are."""

    status: int
    body: Any


def failure(status: int, code: str = "MSS.00000001") -> Answer:
    """An error, as the platform says it."""
    return Answer(status, {"error_code": code, "error_msg": f"for {SECRET_KEY}"})


class Stub:
    """The platform: its state, and `requests`, all that it was asked with a right signature.

    `before` is called with each such request; what it returns, if anything, is answered instead. `drops` are fields
    of the tenant's configuration that are lost when it is written, and with `masks_key` the key is masked when read.
    """

    def __init__(self) -> None:
        self.config: Json = {}
        self.rooms: dict[str, Json] = {}
        self.jobs: list[Json] = []
        self.requests: list[Request] = []
        self.refused: list[str] = []  # signatures that are not right
        self.before: Callable[[Request], Answer | None] = lambda _: None
        self.drops: tuple[str, ...] = ()
        self.masks_key = False
        self.url = ""

    @property
    def environ(self) -> dict[str, str]:
        """Credentials by the names of the vendor's SDK."""
        return {
            "HUAWEICLOUD_SDK_AK": ACCESS_KEY,
            "HUAWEICLOUD_SDK_SK": SECRET_KEY,
            "HUAWEICLOUD_SDK_PROJECT_ID": PROJECT,
        }

    def answer(self, request: Request) -> Answer:
        """What the platform answers to a request that is signed well."""
        self.requests.append(request)
        instead = self.before(request)
        if instead is not None:
            return instead
        return self._known(request) or failure(404)

    def _known(self, request: Request) -> Answer | None:
        answer: Any = None
        match request.method, request.path.removeprefix(_PREFIX).split("/"):
            case "GET", ["smart-live-configs", "user-config"]:
                answer = self._shown()
            case "PUT", ["smart-live-configs", "user-config"]:
                answer = self._write(request.body)
            case "GET", ["smart-live-jobs"]:
                answer = self._page(request.query)
            case "GET", ["smart-live-rooms", room]:
                answer = self.rooms.get(room)
            case "GET", ["smart-live-rooms", room, "smart-live-jobs", job]:
                found = (one for one in self.jobs if (one["room_id"], one["job_id"]) == (room, job))
                answer = next(found, None)
        return None if answer is None else Answer(200, answer)

    def _shown(self) -> Json:
        shown: Json = json.loads(json.dumps(self.config))
        if self.masks_key and "key" in shown.get("live_event_callback_config", {}):
            shown["live_event_callback_config"]["key"] = "******"
        return shown

    def _write(self, body: Json) -> Json:
        new = {name: value for name, value in body.items() if name not in self.drops}
        if "live_notify_config" in new:
            assert new["live_notify_config"].pop("action") == "replace"
        self.config = new
        return {}

    def _page(self, query: dict[str, str]) -> Json:
        limit, offset = int(query["limit"]), int(query["offset"])
        assert limit <= _MOST
        states, since = query["state"].split(","), query.get("create_since", "")
        found = [one for one in self.jobs if one["state"] in states and one["create_time"] >= since]
        found.sort(key=lambda one: one[query["sort_key"]], reverse=query["sort_dir"] == "desc")
        return {"count": len(found), "smart_live_jobs": found[offset : offset + limit]}


def job(number: int, state: str, began: datetime, ended: datetime | None = None, **fields: Any) -> Json:
    """A job as the platform shows it, with what is not to be kept."""
    shown: Json = {
        "job_id": f"job{number:029}",
        "room_id": "room1",
        "room_name": "夏日直播间",
        "state": state,
        "create_time": _text(began),
        "start_time": _text(began),
        "live_event_report_url": REPORT_URL,
    }
    if ended is not None:
        shown |= {"end_time": _text(ended), "stream_duration": (ended - began).total_seconds()}
    return shown | fields


def _text(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def platform() -> Iterator[Stub]:
    """The stub, listening at its `url`."""
    stub = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert stub.refused == []


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            parts = urlsplit(self.path)
            if not is_signed(self.command, self.path, headers, body):
                stub.refused.append(self.path)
                answer = failure(401, "APIGW.0301")
            else:
                query = dict(parse_qsl(parts.query))
                answer = stub.answer(Request(self.command, parts.path, query, json.loads(body) if body else None))
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Request-Id", "request-of-the-stub")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = _take  # noqa: N815 (http.server's names)

        def log_message(self, *_: object) -> None:  # not to standard error
            pass

    return Handler


def is_signed(method: str, target: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether a request has the right SDK-HMAC-SHA256 signature, of now.

    From the vendor's description of it, and not with the vendor's code.
    """
    algorithm, _, rest = headers.get("authorization", "").partition(" ")
    given = dict(part.strip().split("=", 1) for part in rest.split(",") if "=" in part)
    names = given.get("SignedHeaders", "").split(";")
    at = headers.get("x-sdk-date", "")
    if algorithm != _ALGORITHM or given.get("Access") != ACCESS_KEY or not {"host", "x-sdk-date"} <= set(names):
        return False
    age = datetime.now(UTC) - datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    parts = urlsplit(target)
    path = "/".join(quote(unquote(one), safe="~") for one in parts.path.split("/")).rstrip("/") + "/"
    pairs = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in parse_qsl(parts.query))
    request = [
        method,
        path,
        "&".join(f"{name}={value}" for name, value in pairs),
        "".join(f"{name}:{headers[name].strip()}\n" for name in names),
        ";".join(names),
        hashlib.sha256(body).hexdigest(),
    ]
    text = "\n".join([_ALGORITHM, at, hashlib.sha256("\n".join(request).encode()).hexdigest()])
    expected = hmac.new(SECRET_KEY.encode(), text.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, given.get("Signature", "")) and abs(age) < timedelta(minutes=15)
