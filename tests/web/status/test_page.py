"""The status page of a real receiver: what it shows, to whom, and what it never shows."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from html import unescape
from urllib.parse import quote

import pytest

from receiver.tools.sender import body_of
from receiver.web.status.texts import ENGLISH, TEXTS
from tests.helpers.receiver import KEY, Answer, Process, running
from tests.helpers.shell import run

SECRETS = {
    "stream key": "stream-key-of-nobody-else",
    "body": "only-in-the-body",
    "output path": "path-of-the-output",
    "output user": "user-of-the-output",
    "own parameter": "parameter-of-the-url",
    "previous key": "previous-key-of-the-test",
    "URL that is the secret": "url-that-is-the-secret",
}
OUTPUT = f"rtmp://{SECRETS['output user']}:x@push.example:1935/live/{SECRETS['output path']}?auth_key=x"
ENDPOINTS = """
[[endpoints]]
name = "default"
live_event_type_callback_url = "https://localhost/callbacks?room={parameter}"
key = "{key}"
previous_key = "{previous}"

[[endpoints]]
name = "open"
live_event_type_callback_url = "https://localhost/{secret}"
auth_type = "NONE"
"""
# Of what comes from outside, each with what a page must not hold of it.
HOSTILE = {
    "markup": ("<script>alert(1)</script><img src=x onerror=alert(2)>", "<script>alert"),
    "end of an attribute": ("\"'><svg onload=alert(3)>", "<svg onload"),
    "bidirectional override": ("left \u202eright\u202c \u2066isolated", "\u202e"),
    "controls": ("a\x1b[31mb\x07c", "\x1b"),
    "template": ("{{ 7 * 191 }}{% raw %}", "1337"),
    "long": ("long " * 2000, "long " * 100),
}
IDS = ("a b", "a/b", "../../metrics", "?x=1#y", "%2e%2e", "商品", "<b>", "'\"", "a\u202eb", "x" * 200)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A receiver with two endpoints that has stored a livestream, and much from outside that is odd."""
    folder = tmp_path_factory.mktemp("page")
    config = folder / "receiver.toml"
    named = {"parameter": SECRETS["own parameter"], "previous": SECRETS["previous key"]}
    config.write_text(ENDPOINTS.format(key=KEY, secret=SECRETS["URL that is the secret"], **named))
    hosts = "Receiver.Internal,other.example"
    with running(
        folder, RECEIVER_CONFIG=str(config), RECEIVER_STATUS_PAGE="true", RECEIVER_STATUS_PAGE_HOSTS=hosts
    ) as process:
        process.url = f"https://localhost/callbacks?room={SECRETS['own parameter']}"
        fill(process)
        yield process
        assert process.stop() == 0


def fill(receiver: Process) -> None:
    """Send a livestream that is connected, what is hostile, and what is rejected."""
    now = time.time()
    for ago, state in ((30, "CONNECTING"), (25, "CONNECTED"), (15, "DISCONNECTED"), (12, "CONNECTED")):
        message = {"room_id": "room", "job_id": "live", "output_url": OUTPUT, "state": state}
        message |= {"stream_key": SECRETS["stream key"], "unknown": SECRETS["body"]}
        assert receiver.post(body_of("RTMP_STREAM_STATE_CHANGE", message), at=now - ago).status == 200
    paragraph = {"scene_script_name": "Scene", "shoot_script_sequence_no": "7", "shoot_script_title": "Title"}
    product = {"product_id": "P1", "product_title": "Cup"}
    switch = {"room_id": "room", "job_id": "live"} | paragraph | product
    assert receiver.post(body_of("SHOOT_SCRIPT_SWITCH", switch), at=now - 10).status == 200
    for text, _ in HOSTILE.values():
        message = {"room_id": text[:200], "job_id": "hostile", "shoot_script_title": text, "product_title": text}
        assert receiver.post(body_of("SHOOT_SCRIPT_SWITCH", message)).status == 200
    for job_id in IDS:
        assert receiver.post(body_of("REPLY_COMMAND_FINISH", {"job_id": job_id, "reply_id": job_id})).status == 200
    wrong = re.sub("hwSecret=.{8}", "hwSecret=01234567", receiver.target())
    assert receiver.request("POST", wrong, b"").status == 401
    assert receiver.request("POST", receiver.target(now - 3600), b"").status == 401
    assert receiver.request("POST", receiver.target().replace("room=", "room=x"), b"").status == 401
    assert receiver.request("POST", f"/{SECRETS['URL that is the secret']}?x", b"").status == 401
    assert receiver.request("POST", f"/{SECRETS['URL that is the secret']}x", b"").status == 404
    assert len(receiver.rows("SELECT * FROM events")) == 5 + len(HOSTILE) + len(IDS)


def asked(receiver: Process, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request to the operations listener; `host` is the Host header."""
    with closing(http.client.HTTPConnection("127.0.0.1", receiver.operations_port, timeout=60)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})


def text_of(answer: Answer) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.body.decode())).split())


def links(answer: Answer) -> set[str]:
    """Where the links of a page to jobs lead."""
    return {unescape(one) for one in re.findall(r'href="(/jobs/[^"]*)"', answer.body.decode())}


def test_overview(receiver: Process) -> None:
    """It shows what is live, with what is on now, and its product, the output's host, and what was rejected and why."""
    answer = asked(receiver, "/")
    assert answer.status == 200
    said = text_of(answer)
    for shown in ("Connected", "Scene · 7 Title", "Cup", "rtmp://push.example", "room", "live"):
        assert shown in said
    for reason in ("wrong", "stale", "url_mismatch", "unknown_path"):
        assert reason in said
    assert "gives this signature: most likely another key is registered" in said
    assert "the parameter room has another value" in said
    assert answer.body.count(b'class="connected"') >= 1
    assert answer.body.count(b'class="down"') >= 1


def test_serve_says_where(receiver: Process) -> None:
    """The first words have the page's URL."""
    said = (receiver.folder / "serve.out").read_text()
    assert f"  status page   http://127.0.0.1:{receiver.operations_port}/\n" in said


def test_job(receiver: Process) -> None:
    """A job's page has each moment of `receiver history`."""
    history = json.loads(run("receiver history live --json", receiver.folder, receiver.environ))
    said = text_of(asked(receiver, "/jobs/live"))
    assert len(history["timeline"]) == 5
    for moment in history["timeline"]:
        assert moment["at"][11:19] in said
        assert (ENGLISH["states"].get(moment["state"]) or moment["shoot_script_title"]) in said
    assert "0:00:10" in said  # how long it was connected before the outage


@pytest.mark.parametrize("path", ["/", "/jobs/live", "/jobs/hostile", "/jobs/none", "/status.css"])
def test_no_secret(receiver: Process, path: str) -> None:
    """No page holds a stream key, a body, a key, a signature, a secret part of a URL, or the path of an output."""
    answer = asked(receiver, path)
    page = unescape(answer.body.decode())
    for name, secret in (SECRETS | {"key": KEY}).items():
        assert secret not in page, name
    assert not re.search(r"[0-9a-fA-F]{32}", page), "a signature"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts(receiver: Process, name: str) -> None:
    """Texts from outside are escaped, without controls, and cut."""
    for path in ("/", "/jobs/hostile"):
        page = asked(receiver, path).body.decode()
        assert HOSTILE[name][1] not in page
        assert len(page) < 100_000


@pytest.mark.parametrize("job_id", IDS)
def test_odd_ids(receiver: Process, job_id: str) -> None:
    """Each job is found by the link that leads to it, whatever its id is."""
    link = f"/jobs/{quote(job_id, safe='')}"
    assert link in links(asked(receiver, "/"))
    assert asked(receiver, link).status == 200


@pytest.mark.parametrize(
    "path", ["/jobs/", "/jobs/none", "/jobs/%00", "/jobs/%ff%fe", "/jobs/a%00b", "/jobs/" + "x" * 20_000, "/jobs//"]
)
def test_unknown_jobs(receiver: Process, path: str) -> None:
    """What is no job's id is answered 404, by a page."""
    answer = asked(receiver, path)
    assert answer.status == 404
    assert "There is no such job" in text_of(answer)


@pytest.mark.parametrize(
    ("host", "status"),
    {
        "127.0.0.1": 200,
        "127.0.0.1:9464": 200,
        "localhost": 200,
        "LOCALHOST:80": 200,
        "localhost.": 200,
        "[::1]:9464": 200,
        "10.1.2.3": 200,
        "receiver.internal": 200,
        "receiver.internal:9464": 200,
        "other.example": 200,
        "evil.example": 421,
        "evil.receiver.internal": 421,
        "receiver.internal.evil.example": 421,
        "localhost.evil.example": 421,
        "127.0.0.1.evil.example": 421,
        "127.0.0.1@evil.example": 421,
        "2130706433": 421,
        "": 421,
    }.items(),
)
@pytest.mark.parametrize("path", ["/", "/jobs/live", "/status.css"])
def test_host(receiver: Process, path: str, host: str, status: int) -> None:
    """Under a name that is not the listener's nothing is shown, and what to set is said; any address is its own."""
    answer = asked(receiver, path, host=host)
    assert answer.status == status
    if status == 421:
        assert b"status_page_hosts" in answer.body
        assert b"live" not in answer.body


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_host_of_others(receiver: Process, path: str) -> None:
    """What programs ask for is answered under any name, as without the page."""
    assert asked(receiver, path, host="evil.example").status == 200


@pytest.mark.parametrize("path", ["/", "/jobs/live", "/jobs/none", "/status.css"])
def test_headers(receiver: Process, path: str) -> None:
    """A browser loads nothing from elsewhere, shows it in no frame, and keeps nothing; HEAD is answered, POST not."""
    for method, host in (("GET", "localhost"), ("HEAD", "localhost"), ("GET", "evil.example")):
        headers = asked(receiver, path, method, host=host).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert not any("http" in value or "unsafe" in value or "*" in value for value in policy.values())
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
    for method in ("POST", "PUT", "DELETE"):
        assert asked(receiver, path, method).status == 405


@pytest.mark.parametrize(
    ("accepted", "language"),
    {
        "": "en",
        "en": "en",
        "zh": "zh",
        "zh-CN,zh;q=0.9,en;q=0.8": "zh",
        "en-US,en;q=0.9,zh;q=0.8": "en",
        "zh;q=0.5, en;q=0.6": "en",
        "zh;q=0": "en",
        "de, zh-TW;q=0.1": "zh",
        "de": "en",
        "*": "en",
        "zh;q=nan": "en",
        "zh;q=1e9": "en",
        ";;,,=": "en",
        "zh,en": "zh",
        "en,zh": "en",
    }.items(),
)
def test_language(receiver: Process, accepted: str, language: str) -> None:
    """It is in the language that is preferred of the two that there are, and says which."""
    for path in ("/", "/jobs/live", "/jobs/none"):
        answer = asked(receiver, path, accept_language=accepted)
        assert answer.headers["content-language"] == language
        assert answer.headers["vary"] == "Accept-Language"
        assert f'<html lang="{TEXTS[language]["lang"]}">' in answer.body.decode()
