"""The HTTP contract, spoken over sockets and TLS with a real process."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from receiver.protocol.signature import AuthType, sign
from tests.helpers.receiver import KEY, SAMPLES, Process, running, wait_until

ACCEPTED = b'{"status":"accepted"}'
UNAUTHORIZED = b'{"error":"unauthorized"}'
SAMPLE = SAMPLES["RTMP_STREAM_STATE_CHANGE"]
LIMIT = 2**20


def test_official_samples_arrive_with_every_field(receiver: Process) -> None:
    """The three official samples, the malformed one included, arrive in the database field by field."""
    for body in SAMPLES.values():
        assert receiver.post(body)[:2] == (200, ACCEPTED)
    rows = receiver.rows("SELECT * FROM events WHERE job_id = ? ORDER BY id", "e87104f76d7546ce8a46ac6b04c49c3c")
    found = {row["event_type"]: row for row in rows}
    assert {name: row["body"].encode() for name, row in found.items()} == SAMPLES
    assert {row["room_id"] for row in rows} == {"26f065244f754b3aa853b649a21aaf66"}
    script = found["SHOOT_SCRIPT_SWITCH"]
    assert tuple(script)[8:11] == ("Product 1", 2, "Paragraph 2")
    stream = found["RTMP_STREAM_STATE_CHANGE"]
    assert tuple(stream)[11:14] == ("rtmp://xxx/xx/xx", "xxxxx", "CONNECTED")
    assert found["REPLY_COMMAND_FINISH"]["reply_id"] == "e87104f76d7546ce8a46ac6b04c49c3c"


def signature(receiver: Process, at: float | None = None) -> tuple[str, str]:
    headers = sign(receiver.url, KEY, at or time.time(), auth_type=AuthType.MSS_A_HEAD).headers
    return headers["x-hw-mss-secret"], headers["x-hw-mss-time"]


def bad_queries() -> Iterator[tuple[str, str, str]]:
    """Queries with {secret} and {time} to fill in, and the reason that each is rejected for."""
    yield "wrong", "hwSecret=" + "0" * 64 + "&hwTime={time}", "wrong"
    yield "missing", "hwTime={time}", "missing"
    yield "no query", "", "missing"
    yield "empty", "hwSecret=&hwTime={time}", "malformed"
    for name, blank in (("blank before", "%20{secret}"), ("plus after", "{secret}+"), ("blank inside", "a%20{secret}")):
        yield name, f"hwSecret={blank}&hwTime={{time}}", "malformed"
    yield "non-ASCII", "hwSecret=" + quote("密" * 64) + "&hwTime={time}", "malformed"
    yield "too long", "hwSecret={secret}0&hwTime={time}", "malformed"
    yield "far too long", "hwSecret=" + "a" * 60000 + "&hwTime={time}", "malformed"
    arabic = "".join(chr(0x660 + digit) for digit in range(8))
    for text in ("0x5f", "5_f", "%2B5f", "+5f", "%205f", "-5f", quote(arabic), quote("\uff15f"), "1" * 20, ""):
        yield f"time {text}", f"hwSecret={{secret}}&hwTime={text}", "malformed"
    yield "no time", "hwSecret={secret}", "missing"
    yield "secret twice", "hwSecret={secret}&hwSecret={secret}&hwTime={time}", "ambiguous"
    yield "time twice", "hwSecret={secret}&hwTime={time}&hwTime={time}", "ambiguous"
    yield "secret twice, one in other case", "hwSecret={secret}&hwsecret={secret}&hwTime={time}", "ambiguous"
    yield "secret twice, one encoded", "hwSecret={secret}&hw%53ecret={secret}&hwTime={time}", "ambiguous"
    yield "other case", "HWSECRET={secret}&hwTime={time}", "malformed"
    yield "name encoded", "hwSecret={secret}&hw%54ime={time}", "malformed"
    yield "value encoded", "hwSecret=%35{secret}&hwTime={time}", "malformed"
    yield "semicolon", "hwSecret={secret};hwTime={time}", "malformed"
    yield "10,000 parameters", "hwSecret={secret}&hwTime={time}" + "&a=1" * 10_000, "malformed"
    yield "one parameter too many", "hwSecret={secret}&hwTime={time}&a=1", "url_mismatch"
    yield "another time", "hwSecret={secret}&hwTime=66df9308", "wrong"


@pytest.mark.parametrize(("query", "reason"), [pytest.param(*one[1:], id=one[0]) for one in bad_queries()])
def test_signature_that_is_not_right(receiver: Process, query: str, reason: str) -> None:
    """Whatever is wrong with a signature, the answer is the same 401, and the reason is counted."""
    secret, at = signature(receiver)
    before = receiver.metric("callbacks_rejected_total", "default", reason)
    target = "/callbacks/metastudio?" + query.replace("{secret}", secret).replace("{time}", at)
    answer = receiver.request("POST", target, SAMPLE)
    assert answer[:2] == (401, UNAUTHORIZED)
    assert receiver.metric("callbacks_rejected_total", "default", reason) == before + 1


def test_upper_case_signature(receiver: Process) -> None:
    """Hex in upper case is the same signature."""
    secret, at = signature(receiver)
    target = f"/callbacks/metastudio?hwSecret={secret.upper()}&hwTime={at}"
    assert receiver.request("POST", target, SAMPLE).status == 200


def test_header_signature_does_not_count_for_mss_a(receiver: Process) -> None:
    """With auth_type MSS_A only the query counts, whatever the headers say."""
    assert receiver.post_with_headers(SAMPLE)[:2] == (401, UNAUTHORIZED)
    assert receiver.post(SAMPLE, headers={"x-hw-mss-secret": "0" * 64, "x-hw-mss-time": "5f"}).status == 200


@pytest.mark.parametrize("offset", [-3600, 3600])
def test_stale_is_refused_and_kept(receiver: Process, offset: int) -> None:
    """A right signature an hour off gets the same 401, and its body is kept in quarantine with its bytes."""
    body = SAMPLE + b" " * abs(offset // 1000) + b"\n" * (offset > 0)
    assert receiver.post(body, at=time.time() + offset)[:2] == (401, UNAUTHORIZED)
    (row,) = receiver.rows("SELECT * FROM quarantine WHERE body = ?", body)
    assert row["reason"] == "stale"
    assert receiver.rows("SELECT 1 FROM events WHERE body = ?", body.decode()) == []


BAD_BODIES = {
    "empty": b"",
    "not JSON": b"event_type=END",
    "UTF-16": SAMPLE.decode().encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + SAMPLE,
    "invalid UTF-8": b'{"event_type":"A","message":{"x":"\xff"}}',
    "NUL": rb'{"event_type":"REPLY_COMMAND_FINISH","message":{"job_id":"a\u0000b"}}',
    "lone surrogate": rb'{"event_type":"REPLY_COMMAND_FINISH","message":{"job_id":"a\ud800b"}}',
    "NaN": b'{"event_type":"REPLY_COMMAND_FINISH","message":{"job_id":"a","reply_id":NaN}}',
    "repeated key": b'{"event_type":"A","event_type":"B","message":{}}',
    "5,000 digits": b'{"event_type":"A","message":{"x":' + b"7" * 5000 + b"}}",
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "message missing": b'{"event_type":"REPLY_COMMAND_FINISH"}',
    "message null": b'{"event_type":"REPLY_COMMAND_FINISH","message":null}',
    "message a list": b'{"event_type":"REPLY_COMMAND_FINISH","message":[]}',
    "message wrapped once more": json.dumps({"event_type": "A", "message": json.dumps(json.dumps({"a": 1}))}).encode(),
    "id of 10,000 characters": b'{"event_type":"REPLY_COMMAND_FINISH","message":{"job_id":"' + b"a" * 10_000 + b'"}}',
    "gzip": gzip.compress(SAMPLE),
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in BAD_BODIES.items()])
def test_authentic_body_that_is_not_understood(receiver: Process, body: bytes) -> None:
    """An authentic body is accepted whatever it holds, and kept in quarantine with its exact bytes and a reason."""
    headers = {"Content-Encoding": "gzip"} if body.startswith(b"\x1f\x8b") else {}
    assert receiver.post(body, headers=headers)[:2] == (200, ACCEPTED)
    (row,) = receiver.rows("SELECT * FROM quarantine WHERE body = ?", body)
    assert re.fullmatch("[a-z0-9_]+", row["reason"])


def chunked(body: bytes, size: int = 60_000) -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("coding", ["declared", "chunked"])
def test_body_at_the_limit(receiver: Process, coding: str, over: int) -> None:
    """A body of exactly the limit is accepted, one byte more is answered 413, declared or chunked."""
    body = SAMPLE + b" " * (LIMIT - len(SAMPLE) + over)
    head = f"POST {receiver.target()} HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n".encode()
    if coding == "declared":
        raw = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        raw = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body)
    assert receiver.exchange(raw).startswith(b"HTTP/1.1 413" if over else b"HTTP/1.1 200")
    kept = receiver.rows("SELECT length(body) FROM events WHERE length(body) >= ?", LIMIT)
    assert all(row[0] == LIMIT for row in kept)
    assert kept or over


def test_declared_length_is_refused_before_the_body(receiver: Process) -> None:
    """A body that is declared too large is refused before a byte of it is sent."""
    raw = f"POST {receiver.target()} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode()
    assert receiver.exchange(raw).startswith(b"HTTP/1.1 413")


def test_unauthentic_is_refused_before_the_body(receiver: Process) -> None:
    """Without a signature the body is not waited for."""
    raw = b"POST /callbacks/metastudio HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n"
    assert receiver.exchange(raw).startswith(b"HTTP/1.1 401")


def test_pipelined_and_kept_alive(receiver: Process) -> None:
    """Several requests on one connection, sent at once, are each answered, in order."""
    posts = b"".join(
        f"POST {receiver.target()} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        for body in SAMPLES.values()
    )
    wrong = b"POST /callbacks/metastudio HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    received = receiver.exchange(posts + wrong + posts, answers=7)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200", b"200", b"401", b"200", b"200", b"200"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/callbacks/metastudio", 405),
        ("HEAD", "/callbacks/metastudio", 405),
        ("PUT", "/callbacks/metastudio", 405),
        ("POST", "/callbacks/metastudio/", 404),
        ("POST", "/callbacks", 404),
        ("POST", "/", 404),
        ("GET", "/metrics", 404),
        ("GET", "/healthz", 200),
        ("POST", "/healthz", 405),
        ("POST", "//callbacks/metastudio", 404),
    ],
)
def test_methods_and_paths(receiver: Process, method: str, path: str, status: int) -> None:
    """POST on the registered path and GET on /healthz, and nothing else."""
    assert receiver.request(method, path).status == status


def test_path_is_the_same_however_encoded(receiver: Process) -> None:
    """A percent-encoded spelling of the path is the same path."""
    target = receiver.target().replace("/callbacks", "/c%61llbacks")
    assert receiver.request("POST", target, SAMPLE).status == 200


def test_host_header_does_not_count(receiver: Process) -> None:
    """The signature is checked against the configured URL, whatever Host says."""
    assert receiver.post(SAMPLE, headers={"Host": "evil.example"}).status == 200


GARBAGE = [
    b"\x16\x03\x01\x00\x05hello",
    b"GET\r\n\r\n",
    b"POST /callbacks/metastudio HTTP/9.9\r\n\r\n",
    b"POST /callbacks/metastudio HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /callbacks/metastudio HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"POST /callbacks/metastudio HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /callbacks/metastudio?hwSecret=\xff HTTP/1.1\r\n\r\n",
    "POST /回调 HTTP/1.1\r\n\r\n".encode(),
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"CONNECT localhost:1 HTTP/1.1\r\n\r\n",
    b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("raw", GARBAGE)
def test_garbage_is_never_answered_500(receiver: Process, raw: bytes) -> None:
    """What is no proper request is refused, and the next one is served."""
    status = int(receiver.exchange(raw).split(maxsplit=2)[1])
    assert 400 <= status < 500
    assert receiver.post(SAMPLE).status == 200


@pytest.mark.parametrize("cut", ["in the head", "in the body", "in a chunk", "before the answer"])
def test_client_that_vanishes(receiver: Process, cut: str) -> None:
    """A client that vanishes harms nobody, and half a body is never stored."""
    body = SAMPLE + b" " * 77
    head = f"POST {receiver.target()} HTTP/1.1\r\nHost: localhost\r\n"
    length = f"Content-Length: {len(body)}\r\n\r\n"
    raw = {
        "in the head": head.encode(),
        "in the body": (head + length).encode() + body[:-1],
        "in a chunk": (head + "Transfer-Encoding: chunked\r\n\r\nffff\r\n").encode() + body,
        "before the answer": (head + length).encode() + body,
    }[cut]
    before = receiver.metric("callbacks_rejected_total", "default", "disconnected")
    stored = len(receiver.rows("SELECT 1 FROM events WHERE body = ?", body.decode()))
    with receiver.connect() as connection:
        connection.sendall(raw)
    if cut in ("in the body", "in a chunk"):
        wait_until(
            lambda: receiver.metric("callbacks_rejected_total", "default", "disconnected") == before + 1, "the count"
        )
        assert len(receiver.rows("SELECT 1 FROM events WHERE body = ?", body.decode())) == stored
    assert receiver.post(SAMPLE).status == 200


def test_exact_repeat_is_stored_once_and_counted(receiver: Process) -> None:
    """The same signature and body twice is one event; with another body it is another event."""
    at = time.time()
    body = SAMPLE.replace(b"CONNECTED", b"REPEATED")
    name = ("events_total", "default", "RTMP_STREAM_STATE_CHANGE", "duplicate")
    receiver.rows("SELECT 1")  # all that was sent before is counted
    before = receiver.metric(*name)
    for one in (body, body, body + b" "):
        assert receiver.post(one, at=at).status == 200
    assert len(receiver.rows("SELECT 1 FROM events WHERE state = 'REPEATED'")) == 2
    assert receiver.metric(*name) == before + 1


def test_no_secret_is_shown(receiver: Process) -> None:
    """Neither key nor signature nor query nor stream key is in logs, metrics or answers."""
    secret, at = signature(receiver)
    shown = b""
    for query in (
        "hwSecret={0}&hwTime=zz",
        "hwSecret={0}&hwTime={1}&x=TheQuery",
        "hwSecret={0}&hwSecret={0}&hwTime={1}",
    ):
        shown += receiver.request("POST", "/callbacks/metastudio?" + query.format(secret, at), SAMPLE).body
    shown += receiver.exchange(f"POST /callbacks/metastudio?hwSecret={secret} HTTP/7\r\n\r\n".encode())
    assert receiver.post(SAMPLE.replace(b"xxxxx", b"TheStreamKey")).status == 200
    shown += receiver.operations("/metrics").body + receiver.log.encode() + (receiver.folder / "serve.out").read_bytes()
    for one in (KEY, secret, "TheQuery", "hwSecret", "TheStreamKey"):
        assert one.encode() not in shown


def test_rejections_are_logged_as_json_at_a_bounded_rate(receiver: Process) -> None:
    """Each rejection is a line of JSON with the reason and the client, until there are too many of them."""
    for _ in range(30):
        receiver.request("POST", "/callbacks/metastudio", b"")
    lines = [json.loads(line) for line in receiver.log.splitlines()]
    rejected = [line for line in lines if line["event"] == "callback rejected"]
    assert {"endpoint": "default", "reason": "missing", "client": "127.0.0.1"}.items() <= rejected[0].items() | {
        ("reason", "missing")
    }
    assert len(rejected) < receiver.metric("callbacks_total", "default", "rejected")


def test_operations_listener(receiver: Process) -> None:
    """Metrics, health and readiness are on the operations listener, and the callbacks are not."""
    assert receiver.operations("/healthz").status == 200
    assert receiver.operations("/readyz").status == 200
    assert receiver.operations("/callbacks/metastudio").status == 404
    assert receiver.operations("/metrics").headers["content-type"].startswith("text/plain")
    wait_until(lambda: receiver.metric("database_up") == 1, "a database in use")


def test_without_a_certificate_it_speaks_plain_http(tmp_path: Path) -> None:
    """Without a certificate it serves plain HTTP, for use behind a proxy, and says so."""
    with running(tmp_path, tls=False) as plain:
        assert plain.post(SAMPLE).status == 200
        assert "plain HTTP" in (tmp_path / "serve.out").read_text()


def test_an_answer_is_one_write(tmp_path: Path) -> None:
    """The head and the body of an answer leave in one system call, on both listeners, also where no body follows."""
    trace = tmp_path / "trace"
    with running(tmp_path, tls=False) as receiver:
        command = ["strace", "-f", "-p", str(receiver.process.pid), "-s", "1000", "-o", str(trace)]
        with subprocess.Popen([*command, "-e", "trace=write,writev,sendto,sendmsg"], stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            assert b"attached" in tracer.stderr.readline()
            assert receiver.post(SAMPLE).status == 200
            assert receiver.operations("/healthz").status == 200
            assert receiver.request("HEAD", "/healthz").status == 200
            tracer.terminate()
    answers = [line for line in trace.read_text().splitlines() if "HTTP/1.1 200" in line]
    assert ['{\\"status\\":' in line for line in answers] == [True, True, False]


def test_several_endpoints(tmp_path: Path) -> None:
    """Endpoints are told apart by their path, each with its own authentication."""
    (tmp_path / "some.toml").write_text(
        f"""
        [[endpoints]]
        name = "query"
        live_event_type_callback_url = "https://callbacks.example.com:8443/回调/a%20b?room=1&shop=茶"
        key = "{KEY}"

        [[endpoints]]
        name = "headers"
        live_event_type_callback_url = "https://callbacks.example.com/headers"
        auth_type = "MSS_A_HEAD"
        key = "another key"
        previous_key = "{KEY}"

        [[endpoints]]
        name = "secret-url"
        live_event_type_callback_url = "https://callbacks.example.com/hook?token=0123456789abcdef"
        auth_type = "NONE"
        """
    )
    with running(tmp_path, RECEIVER_CONFIG="some.toml") as receiver:
        receiver.url = "https://callbacks.example.com:8443/回调/a%20b?room=1&shop=茶"
        target = quote(receiver.target(), safe="/?&=%")
        assert receiver.request("POST", target, SAMPLE).status == 200
        assert receiver.request("POST", target.replace("room=1", "room=2"), SAMPLE).status == 401
        receiver.url = "https://callbacks.example.com/headers"
        assert receiver.post_with_headers(SAMPLE).status == 200
        assert receiver.post(SAMPLE).status == 401
        assert receiver.request("POST", "/hook?token=0123456789abcdef", SAMPLE).status == 200
        assert receiver.request("POST", "/hook?token=0123456789abcdeg", SAMPLE).status == 401
        assert receiver.request("POST", "/hook", SAMPLE).status == 401
        rows = receiver.rows("SELECT endpoint FROM events ORDER BY received_at")
        assert [row["endpoint"] for row in rows] == ["query", "headers", "secret-url"]
        assert receiver.metric("signature_matches_total", "headers", "host-sorted-hex", "previous") == 1
        assert "0123456789abcdef" not in (tmp_path / "serve.out").read_text()
