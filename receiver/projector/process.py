"""The worker's process, as the feeder sees it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import Any, Self

from receiver.projector.messages import HEAD, ClosedError, Kind, frame, in_json
from receiver.settings.database_url import UrlInFile

_TIME_TO_END = 1.0  # seconds, before it is killed


class WorkerProcess:
    """A running worker, and the socket to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, database_url: str, stale_after: int) -> Self:
        """Start one; raises `OSError`."""
        own, its = socket.socketpair()
        try:
            with its:
                # -P: nothing is imported from the folder that this happens to run in.
                command = [sys.executable, "-P", "-m", "receiver.projector.worker", str(its.fileno()), str(os.getpid())]
                # A session of its own: Ctrl-C, of which the terminal tells all of a session, ended it while it starts.
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=[its.fileno()], start_new_session=True
                )
            own.setblocking(False)
            worker = cls(process, *await asyncio.open_unix_connection(sock=own))
        except BaseException:
            own.close()
            raise
        # The URL is a secret, which arguments and environment would show.
        file = str(database_url.file) if isinstance(database_url, UrlInFile) else None
        settings = {"database_url": database_url, "database_url_file": file, "stale_after": stale_after}
        worker._writer.write(frame(Kind.SETTINGS, in_json(settings)))
        return worker

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def send(self, kind: Kind, payload: bytes) -> None:
        """Send a frame; raises `ClosedError` where the worker has ended."""
        if self._writer.is_closing():  # where uvloop raises no OSError
            raise ClosedError
        try:
            self._writer.write(frame(kind, payload))
            await self._writer.drain()
        except OSError as error:
            raise ClosedError from error

    async def receive(self) -> dict[str, Any]:
        """The worker's next report; raises `ClosedError` where the worker has ended."""
        try:
            size, _ = HEAD.unpack(await self._reader.readexactly(HEAD.size))
            report: dict[str, Any] = json.loads(await self._reader.readexactly(size))
        except (OSError, EOFError) as error:
            raise ClosedError from error
        return report

    async def end(self) -> int:
        """Let it end, and kill it where it does not; returns the exit code, or minus the signal."""
        self._writer.transport.abort()  # what was not read is not waited for
        try:
            async with asyncio.timeout(_TIME_TO_END):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()
