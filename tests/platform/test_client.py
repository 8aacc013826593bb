"""How the platform is asked: in pages, at a bounded rate, again where that may help; time is not waited for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from receiver.platform.client import Platform, PlatformError
from receiver.platform.connect import connect
from tests.helpers.platform import Answer, Request, Stub, failure, job, platform

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with platform() as started:
        for name, value in started.environ.items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def asked(stub: Stub, clock: Clock) -> Platform:
    sdk = connect(None, stub.url)._sdk  # noqa: SLF001 (that of the real thing, with another clock)
    return Platform(sdk, clock=lambda: clock.now, sleep=clock.sleep)


def test_three_pages(stub: Stub, asked: Platform, clock: Clock) -> None:
    """250 jobs come on three pages, each job once, though one more begins meanwhile; at most ten requests a second."""
    stub.jobs = [job(number, "PROCESSING", NOON + timedelta(seconds=number)) for number in range(250)]

    def begin_one(request: Request) -> None:
        if request.query["offset"] == "100":
            stub.jobs.append(job(250, "PROCESSING", NOON + timedelta(hours=1)))

    stub.before = begin_one
    ids = [one["job_id"] for one in asked.jobs(["WAITING", "PROCESSING"])]
    assert ids == [one["job_id"] for one in stub.jobs]
    assert [one.query["offset"] for one in stub.requests] == ["0", "100", "200"]
    assert stub.requests[0].query["state"] == "WAITING,PROCESSING"
    assert clock.slept == pytest.approx([0.1, 0.1])


def test_a_platform_that_gives_the_same_page_again(stub: Stub, asked: Platform) -> None:
    """A platform that does not heed the offset is not asked for ever."""
    page = {"smart_live_jobs": [job(number, "PROCESSING", NOON) for number in range(100)]}
    stub.before = lambda _: Answer(200, page)
    assert len([*asked.jobs(["PROCESSING"])]) == 100
    assert len(stub.requests) == 2


@pytest.mark.parametrize("answer", [failure(429, "APIGW.0308"), failure(403, "APIGW.0308"), failure(500), failure(503)])
def test_what_passes(stub: Stub, asked: Platform, clock: Clock, answer: Answer) -> None:
    """What may pass is tried again after longer and longer pauses; if it does not pass, the error says so."""
    stub.before = lambda _: answer if len(stub.requests) < 3 else None
    assert asked.user_config() == {}
    assert clock.slept == [1, 2]
    stub.before = lambda _: answer
    with pytest.raises(PlatformError, match="4 times more: try later"):
        asked.user_config()
    assert clock.slept[-4:] == [1, 2, 4, 8]


def test_a_platform_that_is_away(asked: Platform, stub: Stub, clock: Clock) -> None:
    """A platform that cannot be reached is tried again too; the error names the options to look at."""
    asked._sdk.client._endpoints = ["http://127.0.0.1:9"]  # noqa: SLF001 (where nothing listens)
    with pytest.raises(PlatformError, match=r"cannot be reached .*--region or --api-endpoint"):
        asked.user_config()
    assert clock.slept == [1, 2, 4, 8]
    assert stub.requests == []


def test_a_platform_that_hangs(stub: Stub, clock: Clock) -> None:
    """A platform that takes the connection and never answers is given up at the deadline, and tried again."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        sdk = connect(None, url, timeout=(60, 0.05))._sdk  # noqa: SLF001 (that of the real thing, with another clock)
        with pytest.raises(PlatformError, match=f"cannot be reached at {url} "):
            Platform(sdk, clock=lambda: clock.now, sleep=clock.sleep).user_config()
    assert clock.slept == [1, 2, 4, 8]
    assert stub.requests == []


def test_one_job(stub: Stub, asked: Platform) -> None:
    """One job is looked up; one that the platform has not is None, and any other refusal an error."""
    stub.jobs = [job(1, "PROCESSING", NOON)]
    found = asked.job("room1", stub.jobs[0]["job_id"])
    assert found is not None
    assert found["room_name"] == "夏日直播间"
    assert asked.job("room1", "another") is None
    stub.before = lambda _: failure(403)
    with pytest.raises(PlatformError, match="no permission for ShowSmartLive:"):
        asked.job("room1", "one")


@pytest.mark.parametrize("jobs", ["x", [1], [{}], {"a": 1}])
def test_a_list_that_is_none(stub: Stub, asked: Platform, jobs: object) -> None:
    """Jobs of another form than is published are an error, and not passed over."""
    stub.before = lambda _: Answer(200, {"smart_live_jobs": jobs})
    with pytest.raises(PlatformError, match=r"ListSmartLiveJobs: .*published form"):
        [*asked.jobs(["PROCESSING"])]
