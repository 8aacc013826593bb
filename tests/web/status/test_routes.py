from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from receiver.delivery import NotDurableError
from receiver.metrics import Metrics
from receiver.rejections import Rejection
from receiver.settings.load import load
from receiver.web.operations import operations_app
from receiver.web.status.figures import Sources
from receiver.web.status.last_hour import LastHour
from receiver.web.status.routes import status_routes
from tests.helpers.receiver import KEY

REJECTION = Rejection(0, "default", "wrong", "192.0.2.1", "POST", "/", [], None)


class Parts:
    """The other parts of a receiver, of which each can fail."""

    def __init__(self, folder: Path) -> None:
        self.journal: BaseException | None = None
        self.doctor: Exception | None = None
        metrics = Metrics()
        metrics.journal_max_bytes.set(1)
        environ = {"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": f"sqlite:///{folder}/none.db"}
        sources = Sources(
            settings=load(None, environ | {"RECEIVER_CONFIG": "/dev/null"}),
            metrics=metrics,
            last_hour=LastHour(metrics, lambda: 0),
            check_journal=self._check,
            database=lambda: (None, 0),
            rejections=lambda: [REJECTION],
            explain=self._explain,
            now=lambda: 0,
        )
        self._app = operations_app(metrics.registry, self._check, status_routes(sources))

    async def _check(self) -> None:
        if self.journal is not None:
            raise self.journal

    def _explain(self, _rejection: Rejection) -> list[str]:
        if self.doctor is not None:
            raise self.doctor
        return ["advice"]

    def get(self, path: str = "/") -> tuple[int, str]:
        """The status and text of an answer."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }

        async def ask() -> None:
            await self._app(scope, receive, send)

        asyncio.run(ask())
        return sent[0]["status"], b"".join(one["body"] for one in sent[1:]).decode()


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_without_a_database(parts: Parts) -> None:
    """Before there is a database the rest is shown."""
    status, page = parts.get()
    assert status == 200
    assert "advice" in page
    assert "there is no database yet" in page
    assert parts.get("/jobs/1")[0] == 503


def test_journal_takes_nothing(parts: Parts) -> None:
    """Where the journal takes nothing, the page says so, and why."""
    parts.journal = NotDurableError("its disk is full")
    status, page = parts.get()
    assert status == 200
    assert "its disk is full" in page


def test_a_fault_is_no_500(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails, the answer is one that says to look into the log, which has it."""
    parts.doctor = RuntimeError("a fault that the test makes")
    status, page = parts.get()
    assert status == 503
    assert "the receiver's log says why" in page
    assert "fault that the test makes" not in page
    assert "fault that the test makes" in caplog.text
