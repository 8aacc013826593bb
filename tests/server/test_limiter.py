from __future__ import annotations

from ipaddress import ip_network

from receiver.metrics import Metrics
from receiver.server.limiter import ConnectionLimiter, Limits

A, B, PROXY = "192.0.2.1", "192.0.2.2", "10.0.0.1"
LONG = 10.0  # more seconds than a new connection is protected from eviction


class Client:
    """A connection that only remembers what became of it."""

    def __init__(self, limiter: ConnectionLimiter[Client], host: str, since: float) -> None:
        self.client_host, self.accepted_at = host, since
        self.dropped = ""
        self.answered = False
        self._limiter = limiter

    def drop(self, reason: str) -> None:
        """Remember why, and be counted no longer."""
        self.dropped = reason
        self._limiter.remove(self)

    def waiting_time(self, now: float) -> float:
        """Since the accept, unless it is answered now."""
        return 0 if self.answered else now - self.accepted_at

    def is_overdue(self, now: float) -> bool:
        """After half a minute."""
        return now > self.accepted_at + 30


class Listener:
    """A limiter, and clients that connect."""

    def __init__(self, total: int = 4, each: int = 2) -> None:
        self.metrics = Metrics()
        limits = Limits(total, each, trusted_proxies=[ip_network(PROXY)])
        self.limiter = ConnectionLimiter[Client](limits, "public", self.metrics)

    def connect(self, host: str, now: float) -> Client | None:
        """A new connection, if there is room for it."""
        if not self.limiter.make_room(host, now):
            return None
        client = Client(self.limiter, host, now)
        self.limiter.add(client)
        return client

    def accept(self, host: str, now: float) -> Client:
        """A new connection of which a callback was accepted."""
        client = self.connect(host, now)
        assert client
        self.limiter.authenticate(client)
        return client

    def value(self, name: str, **labels: str) -> float | None:
        """A metric of the public listener."""
        return self.metrics.registry.get_sample_value(f"metastudio_{name}", {"listener": "public"} | labels)


def test_at_an_address_limit_its_oldest_is_evicted() -> None:
    """At an address's limit its oldest unauthenticated connection is evicted, and none of another address."""
    listener = Listener()
    other = listener.connect(B, 0)
    first, second = listener.connect(A, 1), listener.connect(A, 2)
    assert first
    assert second
    assert other
    third = listener.connect(A, LONG)
    assert third
    assert (first.dropped, second.dropped, other.dropped) == ("limit", "", "")


def test_new_connections_are_not_evicted_at_once() -> None:
    """Where all of an address have only just been accepted, one more is refused instead, and counted."""
    listener = Listener()
    assert listener.connect(A, 0)
    assert listener.connect(A, 0.1)
    assert listener.connect(A, 0.2) is None
    assert listener.value("connections_dropped_total", reason="limit") == 1
    assert listener.value("connections") == 2


def test_at_the_limit_for_all_the_oldest_is_evicted() -> None:
    """At the limit for all, the oldest unauthenticated connection is evicted, whatever its address."""
    listener = Listener(total=2)
    first, second = listener.connect(A, 0), listener.connect(B, 1)
    assert first
    assert second
    assert listener.connect("192.0.2.3", LONG)
    assert (first.dropped, second.dropped) == ("limit", "")


def test_authenticated_connections_are_evicted_last() -> None:
    """Authenticated ones do not count for their address, and are evicted after all others, the idlest first."""
    listener = Listener(total=5)
    accepted = [listener.accept(A, number) for number in range(4)]
    accepted[0].answered = True
    unauthenticated = listener.connect(B, 5)
    assert unauthenticated
    assert listener.connect(B, LONG)
    assert unauthenticated.dropped
    assert not any(client.dropped for client in accepted)
    assert listener.connect(B, LONG)
    assert [client.dropped for client in accepted] == ["", "limit", "", ""]


def test_an_authenticated_connection_that_is_answered_is_not_evicted() -> None:
    """Where no client is waited for, one more is refused instead."""
    listener = Listener(total=2)
    for _ in range(2):
        listener.accept(A, 0).answered = True
    assert listener.connect(B, LONG) is None


def test_a_trusted_proxy_has_no_limit_of_its_own() -> None:
    """All clients behind a proxy have its address, so only the limit for all holds there."""
    listener = Listener(total=4)
    assert all(listener.connect(PROXY, 0) for _ in range(4))
    assert listener.connect(PROXY, 0) is None


def test_connections_are_counted_until_they_end() -> None:
    """A connection that ends, even twice, makes room for one; nothing is kept of its address."""
    listener = Listener(total=2)
    for now in range(100):
        client = listener.connect(A, now)
        assert client
        listener.limiter.remove(client)
        listener.limiter.remove(client)
    assert listener.value("connections") == 0
    assert not listener.limiter.connections


def test_overdue_connections_are_dropped() -> None:
    """Connections that have missed a deadline are dropped, and no others."""
    listener = Listener()
    early, late = listener.connect(A, 0), listener.connect(B, 20)
    assert early
    assert late
    listener.limiter.drop_overdue(40)
    assert (early.dropped, late.dropped) == ("timeout", "")
