"""The worker's side of the socket to the feeder. All methods raise `ClosedError` when the feeder has ended."""

from __future__ import annotations

import select
import socket
from typing import Any

from receiver.projector.messages import HEAD, ClosedError, Kind, frame, in_json


class Channel:
    """Frames over a connected socket, which block."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self, timeout: float | None = None) -> tuple[Kind, bytes] | None:
        """The next frame, or None where none has come after `timeout` seconds."""
        if not self._wait(select.POLLIN, timeout):
            return None
        size, kind = HEAD.unpack(self._read(HEAD.size))
        return Kind(kind), self._read(size)

    def send(self, **report: Any) -> None:  # noqa: ANN401 (whatever JSON has)
        """Report to the feeder."""
        try:
            self._connection.sendall(frame(Kind.REPORT, in_json(report)))
        except OSError as error:
            raise ClosedError from error

    def pause(self, seconds: float) -> None:
        """Wait; not any longer once the feeder has ended."""
        if self._wait(select.POLLRDHUP, seconds):
            raise ClosedError

    def _wait(self, events: int, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._connection, events)
        return bool(poll.poll(None if timeout is None else 1000 * timeout))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = self._connection.recv(min(size - len(data), 2**20))
            except OSError as error:
                raise ClosedError from error
            if not part:
                raise ClosedError
            data += part
        return bytes(data)
