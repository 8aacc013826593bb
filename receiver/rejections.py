"""The last rejected requests of each endpoint, in a file for its owner alone: `receiver doctor --last` reads it.

Written beside the callbacks, at most once a second. No secret of ours is in it: a signature that is right is cut.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from receiver.protocol.signature import SECRET_HEADER, SECRET_PARAMETER, TIME_HEADER

NO_ENDPOINT = "none"  # of a request to a path that is no endpoint's
_KEPT = 32  # of each endpoint
_LONGEST = 2048  # characters of a target
_LONGEST_HEADER = 200
_SHOWN = 8  # characters of a signature that is right
_INTERVAL = 1.0  # seconds
Header = tuple[bytes, bytes]
_HEADERS = frozenset(
    name.encode()
    for name in (
        *("host", SECRET_HEADER, TIME_HEADER, "content-type", "content-length", "transfer-encoding", "user-agent"),
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "via"),
    )
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that was rejected: when (POSIX seconds), by which endpoint, why, and what was asked for by whom."""

    at: float
    endpoint: str
    reason: str
    client: str
    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    signed_at: float | None  # where the signature was right, which is cut then


def rejections_file(journal: Path) -> Path:
    """Where the rejections of the receiver with this journal are."""
    return journal.with_name(f"{journal.name}.rejections.json")


def read(file: Path) -> list[Rejection]:
    """What the file has, the latest first; nothing where there is none or it is not whole. Raises `OSError`."""
    try:
        rows = json.loads(file.read_bytes())
        return sorted((Rejection(**row) for row in rows), key=lambda one: one.at, reverse=True)
    except (FileNotFoundError, ValueError, TypeError):
        return []


class Rejections:
    """Keeps the latest rejections of `endpoints` in `file`, those of earlier runs included."""

    def __init__(self, file: Path, endpoints: Iterable[str]) -> None:
        self._file = file
        self._latest = {name: deque[Rejection](maxlen=_KEPT) for name in (*endpoints, NO_ENDPOINT)}
        self._is_new = asyncio.Event()
        self._noted = dict.fromkeys(self._latest, 0)  # since it was written
        try:
            earlier = read(file)
        except OSError:
            earlier = []
        for one in reversed(earlier):
            if one.endpoint in self._latest:
                self._latest[one.endpoint].append(one)

    def note(  # noqa: PLR0913 (what is known of it)
        self,
        endpoint: str,
        reason: str,
        scope: Mapping[str, Any],
        *,
        client: str,
        at: float,
        signed_at: float | None,
    ) -> None:
        """Keep a rejected request, given as its ASGI scope; where it was signed, without its signature.

        Of many within a second only the first ones.
        """
        # In a flood one is like the other, and is not to cost more than its answer.
        self._noted[endpoint] += 1
        if self._noted[endpoint] > _KEPT:
            return
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = [(name, value) for name, value in scope["headers"] if name in _HEADERS]
        if signed_at is not None or endpoint == NO_ENDPOINT:  # where it may be right for one that there is
            target, headers, is_cut = _without_signature(target, headers)
            if signed_at is not None and not is_cut:  # the URL itself is the secret
                target = b"/****"
        self._latest[endpoint].append(
            Rejection(
                at=at,
                endpoint=endpoint,
                reason=reason,
                client=client,
                method=scope["method"],
                target=target[:_LONGEST].decode("latin-1"),
                headers=[
                    (name.decode("latin-1"), value[:_LONGEST_HEADER].decode("latin-1")) for name, value in headers
                ],
                signed_at=signed_at,
            )
        )
        self._is_new.set()

    def latest(self, count: int) -> list[Rejection]:
        """The latest so many of all endpoints, the latest first; from any thread."""
        copies = map(list, self._latest.values())  # others may come meanwhile
        return sorted(chain.from_iterable(copies), key=lambda one: one.at, reverse=True)[:count]

    async def write(self) -> None:
        """Write whenever there is something new; never ends by itself."""
        can_write = True
        while True:
            await self._is_new.wait()
            self._is_new.clear()
            self._noted = dict.fromkeys(self._latest, 0)
            rows = [asdict(one) for latest in self._latest.values() for one in latest]
            try:
                await asyncio.to_thread(_replace, self._file, rows)
                can_write = True
            except OSError as error:  # a full disk, say: it costs no callback
                if can_write:
                    logger.warning("rejections not kept", extra={"problem": str(error), "file": str(self._file)})
                can_write = False
            await asyncio.sleep(_INTERVAL)


def _replace(file: Path, rows: list[dict[str, Any]]) -> None:
    beside = file.with_name(f"{file.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        json.dump(rows, output)
    beside.replace(file)


def _without_signature(target: bytes, headers: list[Header]) -> tuple[bytes, list[Header], bool]:
    """The same with the signature cut, and whether there is one."""
    name, header = SECRET_PARAMETER.encode() + b"=", SECRET_HEADER.encode()
    pairs = target.partition(b"?")[2].split(b"&")
    for pair in pairs:
        if pair.startswith(name):
            target = target.replace(pair, name + _shortened(pair[len(name) :]))
    is_cut = any(pair.startswith(name) for pair in pairs) or any(one == header for one, _ in headers)
    return target, [(one, _shortened(value) if one == header else value) for one, value in headers], is_cut


def _shortened(secret: bytes) -> bytes:
    return secret[:_SHOWN] + b"..."
