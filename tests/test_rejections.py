"""The file of the last rejected requests, and what the doctor makes of it."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from receiver.cli import main
from receiver.protocol.signature import AuthType, MalformedSignatureError, URLMismatchError, Verifier, sign
from receiver.rejections import Rejections, read, rejections_file
from receiver.settings.settings import EndpointSettings
from receiver.tools.doctor import explain
from tests.helpers.receiver import KEY, SAMPLES, Process, running, wait_until

URL = "https://live.example.com/callbacks?room=7"
ENDPOINT = EndpointSettings("default", URL, key=KEY)
HEAD = replace(ENDPOINT, auth_type=AuthType.MSS_A_HEAD)
NONE = replace(ENDPOINT, auth_type=AuthType.NONE)
NOW = 1_725_928_200.0


def scope(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A request as the application sees it."""
    parts = urlsplit(url)
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"method": "POST", "raw_path": parts.path.encode(), "query_string": parts.query.encode(), "headers": raw}


def written(file: Path, note: Callable[[Rejections], None]) -> None:
    """Note something, and wait until it is written."""
    before = file.stat().st_mtime_ns if file.exists() else 0

    def is_written() -> bool:
        return file.exists() and file.stat().st_mtime_ns != before

    async def write() -> None:
        rejections = Rejections(file, ["default"])
        note(rejections)
        task = asyncio.create_task(rejections.write())
        await asyncio.to_thread(wait_until, is_written, "the file")
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(write())


def note_at(at: float, **other: Any) -> Callable[[Rejections], None]:
    """Notes one request of that time."""
    given: dict[str, Any] = {"client": "192.0.2.7", "at": at, "signed_at": None} | other

    def note(rejections: Rejections) -> None:
        rejections.note("default", "wrong", scope(URL), **given)

    return note


def test_latest_are_kept_across_runs(tmp_path: Path) -> None:
    """The last 32 of each endpoint are there, the latest first, after another start too; nobody else can read them."""
    file = tmp_path / "rejections.json"

    def note_forty(rejections: Rejections) -> None:
        for at in range(40):
            note_at(at)(rejections)

    written(file, note_forty)
    written(file, note_at(1000))
    assert [one.at for one in read(file)] == [1000, *range(31, 0, -1)]  # of those at once the first ones
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


def test_size_is_bounded(tmp_path: Path) -> None:
    """However long what came is, an entry has at most 4 KiB."""
    file = tmp_path / "rejections.json"
    long = dict.fromkeys(("host", "user-agent", "via", "forwarded", "x-forwarded-for", "cookie"), "\x01" * 60_000)

    def note(rejections: Rejections) -> None:
        request = scope("https://h/" + "x" * 60_000, long)
        rejections.note("default", "missing", request, client="::1", at=0, signed_at=None)

    written(file, note)
    assert file.stat().st_size < 4096 + 6 * 1000  # each control character is six in JSON
    assert "cookie" not in file.read_text()


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"at": 1}]', "[1]", "\x00"])
def test_file_that_is_not_whole(tmp_path: Path, content: str) -> None:
    """What another program left there is nothing, and is replaced."""
    file = tmp_path / "rejections.json"
    file.write_text(content)
    assert read(file) == []
    written(file, note_at(1))
    assert [one.at for one in read(file)] == [1]


SIGNED = sign(URL, KEY, NOW).url
SIGNED_HEADERS = sign(URL, KEY, NOW, auth_type=AuthType.MSS_A_HEAD).headers


@pytest.mark.parametrize(
    ("endpoint", "url", "headers"),
    [(ENDPOINT, SIGNED, {}), (HEAD, URL, SIGNED_HEADERS), (NONE, URL, {})],
    ids=["query", "headers", "NONE"],
)
@pytest.mark.parametrize("reason", ["stale", "too_large", "not_durable", "disconnected", "url_mismatch"])
def test_no_secret_is_in_it(
    tmp_path: Path, endpoint: EndpointSettings, url: str, headers: dict[str, str], reason: str
) -> None:
    """What was authentic cannot be sent again from what the file has, and the doctor explains it all the same."""
    file = tmp_path / "rejections.json"

    def note(rejections: Rejections) -> None:
        rejections.note("default", reason, scope(url, headers), client="::1", at=NOW + 999, signed_at=NOW)

    written(file, note)
    (rejection,) = read(file)
    query = urlsplit(rejection.target).query.encode()
    noted = [(name.encode(), value.encode()) for name, value in rejection.headers]
    verifier = Verifier(URL, endpoint.auth_type, [KEY], tolerance=1e9)
    with pytest.raises((MalformedSignatureError, URLMismatchError)):
        verifier.verify(query, noted, NOW)
    assert "room=7" not in file.read_text() or endpoint.auth_type is not AuthType.NONE
    lines = explain(rejection, [endpoint], 2**20)
    assert "the signature is right" in lines
    assert len(lines) == 3 or reason == "url_mismatch"
    assert KEY not in "".join(lines)


def last(receiver: Process, *count: str) -> list[str]:
    """What `receiver doctor --last` says with the receiver's settings, of each request."""
    done = CliRunner().invoke(main, ["doctor", "--last", *count], env=receiver.environ, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.strip().split("\n\n")


def test_doctor_explains_what_came_last(tmp_path: Path) -> None:
    """Each way to be rejected is explained from the file; a wrong path is counted, logged and noted."""
    journal = tmp_path / "var/journal.db"
    with running(tmp_path, RECEIVER_JOURNAL=str(journal), RECEIVER_MAX_BODY_BYTES="1000") as receiver:
        body = SAMPLES["REPLY_COMMAND_FINISH"]
        query = sign(receiver.url, "another key", time.time()).url.partition("?")[2]
        path = "/callbacks/metastudio"
        assert receiver.request("POST", f"{path}?{query}", body).status == 401
        assert receiver.post(body, at=time.time() - 4000).status == 401
        assert receiver.post(b"x" * 1001).status == 413
        right = sign(receiver.url, KEY, time.time()).url.partition("?")[2]
        assert receiver.request("POST", f"{path}?added=1&{right}", body).status == 401
        assert receiver.request("POST", f"{path}s?{right}", body).status == 404
        assert receiver.request("GET", "/favicon.ico").status == 404
        wait_until(lambda: len(read(rejections_file(journal))) == 5, "the rejections")
        explained = last(receiver, "10")
        assert receiver.metric("callbacks_rejected_total", "none", "unknown_path") == 1
    sentences = [
        f"that path is no endpoint's, and such a request is answered 404; theirs are {path}",
        "the parameter added is too much: something between adds it, or it is registered so",
        "and the body is larger than max_body_bytes, 1000",
        "before now, and timestamp_tolerance is 300 s",
        "most likely another key is registered",
    ]
    assert len(explained) == len(sentences)
    for sentence, text in zip(sentences, explained, strict=True):
        assert sentence in text
    assert last(receiver) == explained[:1]
    assert f'"path": "{path}s"' in receiver.log
    assert "hwSecret" not in receiver.log
    assert right.partition("&")[0] not in rejections_file(journal).read_text()


def test_without_a_file(tmp_path: Path) -> None:
    """Where nothing was rejected it says where it looked; beside --last nothing else is taken."""
    environ = {
        "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL,
        "RECEIVER_KEY": KEY,
        "RECEIVER_JOURNAL": str(tmp_path / "journal.db"),
        "RECEIVER_CONFIG": "/dev/null",
    }
    done = CliRunner().invoke(main, ["doctor", "--last"], env=environ)
    assert done.exit_code == 1
    assert str(tmp_path / "journal.db.rejections.json") in done.output
    assert CliRunner().invoke(main, ["doctor", "--last", "1", "/x"], env=environ).exit_code == 2
    (tmp_path / "journal.db.rejections.json").write_text(json.dumps([]))
    assert CliRunner().invoke(main, ["doctor", "--last"], env=environ).exit_code == 1
