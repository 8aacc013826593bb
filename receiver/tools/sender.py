"""The sender's side: post one signed event, or a whole simulated livestream, as MetaStudio does."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from receiver.protocol.events import EventType, StreamState
from receiver.protocol.signature import AUTO, LIKELIEST_FORM, sign
from receiver.settings.settings import EndpointSettings


class SendError(Exception):
    """Nothing could be sent. The message says where to, and the remedy."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver answered, and how long it took in seconds."""

    status: int
    body: str
    seconds: float


class Sender:
    """Posts signed bodies for `endpoint` over one kept-alive connection.

    `to` is the base URL to connect to where that is not the registered URL's own host; `trust` is a PEM file with the
    certificate to trust beside the system's.
    """

    def __init__(self, endpoint: EndpointSettings, *, to: str | None = None, trust: Path | None = None) -> None:
        self._endpoint = endpoint
        target = _target(to or endpoint.live_event_type_callback_url)
        self._base = f"{target.scheme}://{target.netloc}"
        host = target.hostname or ""
        if target.scheme == "http":
            self._connection = http.client.HTTPConnection(host, target.port, timeout=30)
        else:
            context = ssl.create_default_context()
            if trust is not None and trust.exists():
                context.load_verify_locations(trust)
            self._connection = http.client.HTTPSConnection(host, target.port, timeout=30, context=context)

    def post(self, body: bytes, sent_at: float) -> Answer:
        """Sign for `sent_at` (POSIX seconds) and post."""
        form = self._endpoint.signature_form
        signed = sign(
            self._endpoint.live_event_type_callback_url,
            self._endpoint.key,
            sent_at,
            auth_type=self._endpoint.auth_type,
            form=LIKELIEST_FORM if form == AUTO else form,
        )
        request = (_request_target(signed.url), body, signed.headers)
        started = time.perf_counter()
        try:
            try:
                status, text = self._exchange(*request)
            except (ConnectionResetError, BrokenPipeError):
                # A kept-alive connection that the server had closed meanwhile; the receiver stores a repeat once.
                self._connection.close()
                status, text = self._exchange(*request)
        except ssl.SSLCertVerificationError as error:
            problem = f"its certificate is not trusted ({error.verify_message}): name the one to trust with --trust"
            raise SendError(f"{self._base}: {problem}") from error
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last for a name that is none
            problem = str(error) or type(error).__name__
            raise SendError(f"{self._base}: {problem}: is the receiver running there?") from error
        return Answer(status, text, time.perf_counter() - started)

    def _exchange(self, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        self._connection.request("POST", target, body, {"Content-Type": "application/json", **headers})
        response = self._connection.getresponse()
        return response.status, response.read().decode(errors="replace")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def body_of(event_type: str, message: dict[str, Any]) -> bytes:
    """A callback's body: JSON whose message is JSON again, in UTF-8."""
    inner = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    return json.dumps({"event_type": event_type, "message": inner}, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Livestream:
    """A simulated job: its id, and its events as (seconds after its start, body)."""

    job_id: str
    events: list[tuple[float, bytes]]


def livestream(duration: float) -> Livestream:
    """A whole livestream of `duration` seconds: its script twice, a connection lost and found, replies, the end."""
    ids = _made_up_ids()
    found: list[tuple[float, bytes]] = []

    def add(at: float, event_type: EventType, **fields: Any) -> None:  # noqa: ANN401 (a message's fields)
        found.append((at * duration, body_of(event_type, ids | fields)))

    states = (
        (0, StreamState.CONNECTING),
        (0.01, StreamState.CONNECTED),
        (0.40, StreamState.DISCONNECTED),
        (0.41, StreamState.RECONNECTING),
        (0.47, StreamState.CONNECTED),
        (1, StreamState.END),
    )
    for at, state in states:
        url = "rtmp://push.example.com/live/spring"
        add(at, EventType.RTMP_STREAM_STATE_CHANGE, output_url=url, stream_key=secrets.token_hex(8), state=state)
    products = ("春季新茶", "手工紫砂壶", "Travel mug 旅行杯")
    paragraphs = ("开场介绍", "产品特点", "限时优惠")
    script = [(product, number, title) for product in products for number, title in enumerate(paragraphs, 1)]
    for index, (product, number, title) in enumerate(script * 2):
        add(
            0.02 + 0.95 * index / (2 * len(script)),
            EventType.SHOOT_SCRIPT_SWITCH,
            scene_script_name=product,
            shoot_script_sequence_no=str(number),
            shoot_script_title=title,
        )
    for at in (0.15, 0.33, 0.62, 0.71, 0.9):
        add(at, EventType.REPLY_COMMAND_FINISH, reply_id=secrets.token_hex(16))
    return Livestream(ids["job_id"], sorted(found))


def load_bodies() -> Iterator[bytes]:
    """Distinct events without end, of the three types, over a hundred jobs."""
    jobs = [_made_up_ids() for _ in range(100)]
    for number in itertools.count():
        ids = random.choice(jobs)  # noqa: S311 (no secret)
        kinds: tuple[tuple[EventType, dict[str, Any]], ...] = (
            (EventType.SHOOT_SCRIPT_SWITCH, {"scene_script_name": "商品1", "shoot_script_sequence_no": str(number)}),
            (EventType.RTMP_STREAM_STATE_CHANGE, {"state": StreamState.CONNECTED, "output_url": f"rtmp://x/{number}"}),
            (EventType.REPLY_COMMAND_FINISH, {"reply_id": secrets.token_hex(16)}),
        )
        event_type, fields = kinds[number % 3]
        yield body_of(event_type, ids | fields)


def send_load(new_sender: Callable[[], Sender], *, events: int, rate: float, connections: int) -> list[Answer]:
    """Send `events` distinct events at `rate` a second (0: as fast as it goes) over `connections`."""
    numbered = zip(range(events), load_bodies(), strict=False)
    lock = threading.Lock()
    started = time.perf_counter()

    def work() -> list[Answer]:
        answers: list[Answer] = []
        with closing(new_sender()) as sender:
            while True:
                with lock:
                    number, body = next(numbered, (0, None))
                if body is None:
                    return answers
                if rate:
                    time.sleep(max(0, started + number / rate - time.perf_counter()))
                answers.append(sender.post(body, time.time()))

    with ThreadPoolExecutor(connections) as pool:
        workers = [pool.submit(work) for _ in range(connections)]
        return [answer for worker in workers for answer in worker.result()]


def _made_up_ids() -> dict[str, str]:
    return {"room_id": secrets.token_hex(16), "job_id": secrets.token_hex(16)}


def _target(url: str) -> SplitResult:
    """The URL's parts, among which are a host and a valid port or none; raises `SendError`."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise SendError(f"{url}: is not the address of a receiver: give one such as https://localhost:8443")


def _request_target(url: str) -> str:
    """The URL's path and query as they stand on the wire: in ASCII, though signed as registered."""
    parts = urlsplit(url)
    return quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe="/%:@!$&'()*+,;=~?")
