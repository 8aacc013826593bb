"""A TCP proxy between a receiver and PostgreSQL that breaks connections at the worst moment: the COMMIT."""

from __future__ import annotations

import asyncio
import struct
import threading
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any

# What a client may ask before its startup message; the answer is one byte.
_TLS, _GSS = 80877103, 80877104

_Side = tuple[StreamReader, StreamWriter]


class Cut(StrEnum):
    """What becomes of a COMMIT and of its connection."""

    BEFORE = "before"  # the server never gets the COMMIT; both sides see the connection end
    AFTER = "after"  # the server commits; both sides see the connection end before the answer is there
    SILENT_BEFORE = "silently before"  # the server never gets the COMMIT; neither side hears of it
    SILENT_AFTER = "silently after"  # the server commits, but its answer does not arrive; neither side hears of it

    @property
    def is_silent(self) -> bool:
        """Whether the connection seems to live on, to both sides."""
        return self in (Cut.SILENT_BEFORE, Cut.SILENT_AFTER)


class Proxy:
    """Listens on `port` of the loopback for the PostgreSQL at `server_port`.

    Does `cut` to each COMMIT of an INSERT while it is set; `cuts` counts them. After a silent one it takes no more
    connections until it is healed.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.cuts = 0
        self._server_port = server_port
        self.cut: Cut | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="proxy")
        self._thread.start()
        self._ready.wait()

    def heal(self) -> None:
        """Cut no more. A connection that was cut in silence stays cut."""
        self.cut = None

    def close(self) -> None:
        """End everything."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        # A plain function, so that the tasks are ours to wait for.
        listener = await asyncio.start_server(lambda *client: self._start(self._accept(*client)), "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        listener.close()
        while self._tasks:
            _abort(*self._writers)
            await asyncio.wait(self._tasks, timeout=0.1)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, from_client: StreamReader, to_client: StreamWriter) -> None:
        self._writers.add(to_client)
        if self.cuts and self.cut is not None and self.cut.is_silent:  # where packets are lost, new connections are too
            _abort(to_client)
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:  # the server is not there, and that is what the client is to see
            _abort(to_client)
            return
        self._writers.add(to_server)
        await _Connection((from_client, to_client), (from_server, to_server), self._count_cut).carry()
        self._writers -= {to_client, to_server}

    def _count_cut(self) -> Cut | None:
        self.cuts += self.cut is not None
        return self.cut


class _Connection:
    """A client's connection and the one to the server. `next_cut` says what to do to the COMMIT that has come."""

    def __init__(self, client: _Side, server: _Side, next_cut: Callable[[], Cut | None]) -> None:
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._next_cut = next_cut
        self._writes = _Writes()
        self._cut: Cut | None = None

    async def carry(self) -> None:
        """Carry bytes both ways until a side ends, or after a silent cut until both have."""
        tasks = asyncio.create_task(self._carry_up()), asyncio.create_task(self._carry_down())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._cut is not None and self._cut.is_silent:
            await asyncio.wait(tasks)
        _abort(self._to_client, self._to_server)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _carry_up(self) -> None:
        try:
            await self._carry_startup()
            while self._cut is None:
                head = await self._from_client.readexactly(5)
                kind, (length,) = head[:1], struct.unpack("!I", head[1:])
                content = await self._from_client.readexactly(length - 4)
                if self._writes.are_committed_by(kind, content):
                    self._cut = self._next_cut()
                if self._cut not in (Cut.BEFORE, Cut.SILENT_BEFORE):
                    self._to_server.write(head + content)
            if self._cut is not Cut.BEFORE:
                await self._from_client.read()  # until the client ends; after AFTER the server's answer is sooner
        except (IncompleteReadError, OSError):
            pass  # an end like another

    async def _carry_startup(self) -> None:
        code = None
        while code in (None, _TLS, _GSS):
            head = await self._from_client.readexactly(8)
            length, code = struct.unpack("!II", head)
            self._to_server.write(head + await self._from_client.readexactly(length - 8))

    async def _carry_down(self) -> None:
        try:
            while data := await self._from_server.read(65536):
                if self._cut is Cut.AFTER:
                    return
                if self._cut is None:
                    self._to_client.write(data)
        except OSError:
            pass


class _Writes:
    """Whether a transaction inserts, from what a client sends."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, bool] = {}
        self._inserts = False

    def are_committed_by(self, kind: bytes, content: bytes) -> bool:
        if kind == b"Q":
            text = content.rstrip(b"\0").upper()
            if text in (b"COMMIT", b"ROLLBACK"):
                inserts, self._inserts = self._inserts, False
                return inserts and text == b"COMMIT"
        elif kind == b"P":  # Parse: a statement's name and text
            name, text = content.split(b"\0")[:2]
            self._prepared[name] = text.startswith(b"INSERT INTO events")
        elif kind == b"B":  # Bind: a portal's name and a statement's
            self._inserts |= self._prepared.get(content.split(b"\0")[1], False)
        return False


def _abort(*writers: StreamWriter) -> None:
    for writer in writers:
        writer.transport.abort()
