from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import Message, Scope

from receiver.delivery import Delivery, NotDurableError
from receiver.metrics import Metrics
from receiver.protocol.signature import AuthType, Verifier, sign
from receiver.rejections import Rejections
from receiver.web.callbacks import Callback, Rejector, public_app
from receiver.web.memory import BodyMemory
from tests.helpers.receiver import KEY, SAMPLES

URL = "https://localhost/callbacks"
BODY = SAMPLES["REPLY_COMMAND_FINISH"]
LIMIT = 2**20
CHUNKED = [(b"transfer-encoding", b"chunked")]
AN_HOUR = 3600


class Inbox:
    """A journal that keeps in memory, fails, or never comes to an end."""

    def __init__(self, outcome: str = "kept") -> None:
        self.outcome = outcome
        self.kept: list[Delivery] = []

    async def append(self, delivery: Delivery) -> None:
        if self.outcome == "fails":
            raise NotDurableError("the disk is full")
        if self.outcome == "hangs":
            await asyncio.Event().wait()
        self.kept.append(delivery)


class Request:
    """One signed POST straight to the application; `status` is what it was answered."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        at: float | None = None,
        memory: BodyMemory | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        is_cut_off: bool = False,
    ) -> None:
        self._is_cut_off = is_cut_off
        self.received = 0  # how often a piece of the body was asked for
        self._headers = [(b"content-length", b"%d" % len(BODY))] if headers is None else headers
        metrics = Metrics()
        rejector = Rejector(metrics, Rejections(Path("/nowhere/rejections.json"), ["default"]), ())
        callback = Callback(
            name="default",
            url=URL,
            verifier=Verifier(URL, AuthType.MSS_A, [KEY]),
            append=inbox.append,
            metrics=metrics,
            max_body_bytes=LIMIT,
            memory=memory or BodyMemory(LIMIT),
            rejector=rejector,
        )
        self.app = public_app([callback], rejector)
        self.query = urlsplit(sign(URL, KEY, time.time() if at is None else at).url).query.encode()
        self.sent: list[Message] = []

    async def run(self) -> int:
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "raw_path": b"/callbacks",
            "query_string": self.query,
            "headers": self._headers,
            "client": None,
        }
        await self.app(scope, self._receive, self._send)
        status: int = self.sent[0]["status"]
        return status

    async def _receive(self) -> Message:
        self.received += 1
        if not self._is_cut_off:
            return {"type": "http.request", "body": BODY}
        if self.received % 2:
            return {"type": "http.request", "body": b"x" * (LIMIT // 2), "more_body": True}
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


def test_accepted_is_what_was_appended() -> None:
    """200 comes after the delivery was taken, with its exact bytes."""
    inbox = Inbox()
    assert asyncio.run(Request(inbox).run()) == 200
    assert [delivery.body for delivery in inbox.kept] == [BODY]


def test_what_is_not_taken_is_not_accepted() -> None:
    """When the journal fails the answer is 503, and says when to come again."""
    request = Request(Inbox("fails"))
    assert asyncio.run(request.run()) == 503
    assert (b"retry-after", b"5") in request.sent[0]["headers"]


def test_cancelled_request_is_refused() -> None:
    """A request that the ending server cancels is answered 503, where uvicorn would answer 500."""

    async def cancel() -> int:
        task = asyncio.create_task(Request(Inbox("hangs")).run())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(cancel()) == 503


def test_stale_deliveries_are_kept_within_bounds() -> None:
    """Stale deliveries are kept up to a number of bytes; each is answered 401."""
    inbox = Inbox()
    request = Request(inbox, at=time.time() - 1000)
    rounds = 16 * 2**20 // (len(BODY) + 1024) + 100

    async def flood() -> set[int]:
        return {await request.run() for _ in range(rounds)}

    assert asyncio.run(flood()) == {401}
    assert {delivery.quarantine_reason for delivery in inbox.kept} == {"stale"}
    assert rounds - 100 <= len(inbox.kept) < rounds


def test_stale_delivery_that_cannot_be_kept_is_unauthorized_all_the_same() -> None:
    """Whether a stale delivery could be kept is not told to who sent it."""
    assert asyncio.run(Request(Inbox("fails"), at=time.time() - 1000).run()) == 401


def test_room_is_asked_for_before_the_body_is_read() -> None:
    """Where too much is being received at once the answer is 503, or 401 where it is stale, and nothing is read."""
    memory = BodyMemory(LIMIT)
    while memory.take(1024, is_stale=False):
        pass
    for at, status in ((None, 503), (time.time() - AN_HOUR, 401)):
        request = Request(Inbox(), at=at, memory=memory)
        assert asyncio.run(request.run()) == status
        assert request.received == 0


def test_a_body_in_chunks_counts_as_the_limit() -> None:
    """A body whose length is not declared needs room for the largest, until it is on disk; then the room is free."""
    memory = BodyMemory(LIMIT)
    while memory.take(LIMIT, is_stale=False):
        pass
    assert asyncio.run(Request(Inbox(), memory=memory).run()) == 200
    assert asyncio.run(Request(Inbox(), memory=memory, headers=CHUNKED).run()) == 503
    memory.give_back(LIMIT)
    for _ in range(3):
        assert asyncio.run(Request(Inbox(), memory=memory, headers=CHUNKED).run()) == 200
    assert memory.take(LIMIT, is_stale=False)


def test_stale_deliveries_count_for_what_they_have() -> None:
    """Stale deliveries in chunks count for the limit while they are read, then for their length."""
    inbox = Inbox()
    request = Request(inbox, at=time.time() - AN_HOUR, headers=CHUNKED)

    async def run() -> None:
        for _ in range(100):
            assert await request.run() == 401

    asyncio.run(run())
    assert len(inbox.kept) == 100


def test_stale_deliveries_that_are_cut_off_count_too() -> None:
    """With an old signature and bodies that do not end, nobody has more read than may be kept."""
    request = Request(Inbox(), at=time.time() - AN_HOUR, headers=CHUNKED, is_cut_off=True)

    async def run() -> None:
        for _ in range(40):
            assert await request.run() == 401

    asyncio.run(run())
    assert 20 < request.received // 2 <= 32


def test_stale_deliveries_that_are_not_kept_are_not_read() -> None:
    """With its allowance used up, a stale delivery is answered before its body is read."""
    inbox = Inbox()
    request = Request(inbox, at=time.time() - AN_HOUR)

    async def run() -> None:
        for _ in range(16 * 2**20 // (len(BODY) + 1024) + 100):
            assert await request.run() == 401

    asyncio.run(run())
    assert request.received == len(inbox.kept)
