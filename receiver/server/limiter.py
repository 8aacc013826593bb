"""Limits how many connections a listener has, and chooses which one is dropped to make room for another.

Each connection is of one class. A class has a share of all places; where its share is taken, one of its own goes, at
once, however young it is. So connections from unknown addresses, however many, only ever drop each other.

=============  ==================================================  =====  ===========================
class          which connections                                   share  which goes for one more
=============  ==================================================  =====  ===========================
UNKNOWN        all others                                          1/2    the oldest
KNOWN          from an address from which a callback was accepted  1/4    the oldest
               in the last hour, or from a trusted proxy that has
               not yet named its client
AUTHENTICATED  its last callback was accepted                      1/2    the one that is idle longest
=============  ==================================================  =====  ===========================

UNKNOWN borrows what the others leave: where all places are taken, its oldest goes. At the limit of an address the
oldest of that address goes. An address is an IPv4 address or a /64 network.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

from receiver.addresses import Network, client_group, is_trusted, parse_address
from receiver.metrics import Metrics

logger = logging.getLogger(__name__)

_KNOWN_SECONDS = 3600  # for which an address is known after an accepted callback
_MOST_ADDRESSES = 1024  # that are known


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients are allowed. `request_timeout` is in seconds; trusted proxies have no limit of their own address."""

    max_connections: int = 1024
    max_connections_per_address: int = 256
    request_timeout: float = 30
    trusted_proxies: Sequence[Network] = ()


class Limited(Protocol):
    """What the limiter needs of a connection. Times are the event loop's."""

    client_host: str

    def drop(self, reason: str) -> None:
        """Close at once; `reason` is one of the metric's."""

    def waiting_time(self, now: float) -> float:
        """For how many seconds the client has been waited for; 0 while it waits for an answer."""

    def is_overdue(self, now: float) -> bool:
        """Whether the client has missed a deadline."""


class Class(Enum):
    """The class of a connection, and its share of all places."""

    UNKNOWN = "unknown", 1 / 2
    KNOWN = "known", 1 / 4
    AUTHENTICATED = "authenticated", 1 / 2

    def __init__(self, _name: str, share: float) -> None:
        self.share = share


class _Place(NamedTuple):
    """What a connection counts as, and for which address."""

    of: Class
    address: str
    is_proxy: bool


_Connection = TypeVar("_Connection", bound=Limited)


class ConnectionLimiter(Generic[_Connection]):
    """The connections of one listener; `listener` is its name in the metrics."""

    def __init__(self, limits: Limits, listener: str, metrics: Metrics) -> None:
        self.connections: dict[_Connection, _Place] = {}
        self.limits = limits
        # The oldest first, also of each address, where the authenticated ones are not counted.
        self._by_class: dict[Class, dict[_Connection, None]] = {one: {} for one in Class}
        self._by_address: dict[str, dict[_Connection, None]] = {}
        self._known_at: dict[str, float] = {}  # when a callback was last accepted from an address; the oldest first
        self._listener = listener
        self._count = metrics.connections.labels(listener)
        self._dropped = metrics.connections_dropped_total

    def is_proxy(self, host: str) -> bool:
        """Whether `host` is trusted to name its clients."""
        return is_trusted(parse_address(host), self.limits.trusted_proxies)

    def add(self, connection: _Connection, now: float) -> Class | None:
        """Count a new connection: its class, or none if there is no room for it."""
        place = self._place(connection.client_host, now)
        if not self._make_room(place, now):
            self.report("limit", connection.client_host)
            return None
        if len(self.connections) >= self.limits.max_connections and not self._evict_oldest():
            self.report("limit", connection.client_host)
            return None
        self._count.inc()
        self._enter(connection, place)
        return place.of

    def identify(self, connection: _Connection, host: str, now: float) -> None:
        """A trusted proxy says that the request which `connection` brings now is from `host`."""
        old = self.connections.get(connection)
        place = self._place(host, now)
        if old is None or old.address == place.address:
            return
        self._leave(connection)
        self._make_room(place, now)
        self._enter(connection, place)

    def authenticate(self, connection: _Connection, now: float) -> None:
        """A callback of `connection` was accepted."""
        place = self.connections.get(connection)
        if place is None:
            return
        self._known_at.pop(place.address, None)
        self._known_at[place.address] = now
        if len(self._known_at) > _MOST_ADDRESSES:
            del self._known_at[next(iter(self._known_at))]
        if place.of is Class.AUTHENTICATED:  # as after nearly each callback
            return
        place = place._replace(of=Class.AUTHENTICATED)
        if self._make_room(place, now):
            self._leave(connection)
            self._enter(connection, place)

    def remove(self, connection: _Connection) -> None:
        """Count `connection` no longer; does nothing the second time."""
        if connection in self.connections:
            self._leave(connection)
            self._count.dec()

    def drop_overdue(self, now: float) -> None:
        """Drop the connections that have missed a deadline."""
        for connection in [connection for connection in self.connections if connection.is_overdue(now)]:
            connection.drop("timeout")

    def report(self, reason: str, host: str) -> None:
        """Count and log that a connection from `host` was dropped."""
        self._dropped.labels(self._listener, reason).inc()
        details = {"listener": self._listener, "reason": reason, "client": host}
        logger.warning("connection dropped", extra=details)

    def _place(self, host: str, now: float) -> _Place:
        address = parse_address(host)
        group = client_group(address)
        is_proxy = is_trusted(address, self.limits.trusted_proxies)
        is_known = is_proxy or now - self._known_at.get(group, -_KNOWN_SECONDS) < _KNOWN_SECONDS
        return _Place(Class.KNOWN if is_known else Class.UNKNOWN, group, is_proxy)

    def _make_room(self, place: _Place, now: float) -> bool:
        """Evict another connection where one more in `place` would be too many; whether there is room now."""
        if place.of is not Class.AUTHENTICATED:
            same_address = self._by_address.get(place.address, {})
            if len(same_address) >= self.limits.max_connections_per_address and not place.is_proxy:
                next(iter(same_address)).drop("limit")
        same_class = self._by_class[place.of]
        if len(same_class) < max(1, int(self.limits.max_connections * place.of.share)):
            return True
        if place.of is not Class.AUTHENTICATED:
            next(iter(same_class)).drop("limit")
            return True
        idlest = max(same_class, key=lambda connection: connection.waiting_time(now))
        if not idlest.waiting_time(now):  # all are being answered
            return False
        idlest.drop("limit")
        return True

    def _evict_oldest(self) -> bool:
        for one in (Class.UNKNOWN, Class.KNOWN):  # KNOWN where there are only a few places
            for connection in self._by_class[one]:
                connection.drop("limit")
                return True
        return False

    def _enter(self, connection: _Connection, place: _Place) -> None:
        self.connections[connection] = place
        self._by_class[place.of][connection] = None
        if place.of is not Class.AUTHENTICATED:
            self._by_address.setdefault(place.address, {})[connection] = None

    def _leave(self, connection: _Connection) -> None:
        place = self.connections.pop(connection)
        del self._by_class[place.of][connection]
        if place.of is not Class.AUTHENTICATED:
            same_address = self._by_address[place.address]
            del same_address[connection]
            if not same_address:
                del self._by_address[place.address]
