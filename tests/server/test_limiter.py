from __future__ import annotations

from ipaddress import ip_network

import pytest

from receiver.metrics import Metrics
from receiver.server.limiter import Class, ConnectionLimiter, Limits

A, B, PROXY = "192.0.2.1", "192.0.2.2", "10.0.0.1"
HOUR = 3600


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

    def __init__(self, total: int = 8, each: int = 8) -> None:
        self.metrics = Metrics()
        limits = Limits(total, each, trusted_proxies=[ip_network(PROXY)])
        self.limiter = ConnectionLimiter[Client](limits, "public", self.metrics)

    def connect(self, host: str, now: float = 0) -> Client:
        """A new connection."""
        client = Client(self.limiter, host, now)
        if self.limiter.add(client, now) is None:
            client.dropped = "refused"
        return client

    def accept(self, host: str, now: float = 0) -> Client:
        """A new connection of which a callback was accepted."""
        client = self.connect(host, now)
        self.limiter.authenticate(client, now)
        return client

    def class_of(self, client: Client) -> Class:
        """What it counts as."""
        return self.limiter.connections[client].of

    def value(self, name: str, **labels: str) -> float | None:
        """A metric of the public listener."""
        return self.metrics.registry.get_sample_value(f"metastudio_{name}", {"listener": "public"} | labels)


def unknown_clients(listener: Listener, number: int) -> list[Client]:
    """Connections from as many unknown addresses."""
    return [listener.connect(f"198.51.{one // 256}.{one % 256}") for one in range(number)]


def dropped(clients: list[Client]) -> int:
    """How many of them."""
    return sum(client.dropped != "" for client in clients)


def test_unknown_clients_have_half_of_the_places() -> None:
    """Where unknown addresses have half of the places, one more drops the oldest of them, at once."""
    listener = Listener()
    clients = unknown_clients(listener, 6)
    assert [client.dropped for client in clients] == ["limit", "limit", "", "", "", ""]
    assert listener.value("connections") == 4


def test_unknown_clients_drop_no_one_else() -> None:
    """However many come from unknown addresses, none that is authenticated or from a known address goes for them."""
    listener = Listener()
    accepted = [listener.accept(A) for _ in range(4)]
    known = [listener.connect(A) for _ in range(2)]
    clients = unknown_clients(listener, 1000)
    assert dropped(accepted) == dropped(known) == 0
    assert dropped(clients) == 998  # which has the places that are left


def test_a_known_address_always_finds_a_place() -> None:
    """With all places taken there is one for an address from which a callback was accepted; an unknown one goes."""
    listener = Listener()
    accepted = [listener.accept(A) for _ in range(4)]
    clients = unknown_clients(listener, 5)
    again = listener.connect(A, now=1)
    assert listener.class_of(again) is Class.KNOWN
    assert dropped(accepted) == 0
    assert dropped(clients) == 2  # one for the fifth of them


def test_known_addresses_have_a_share_too() -> None:
    """Where known addresses have their share, one more drops the oldest of them that is not authenticated."""
    listener = Listener()
    accepted = listener.accept(A)
    clients = [listener.connect(A) for _ in range(3)]
    assert [client.dropped for client in [accepted, *clients]] == ["", "limit", "", ""]


@pytest.mark.parametrize(("host", "neighbour"), [(A, A), ("2001:db8::1", "2001:db8::2")])
def test_an_address_is_known_for_an_hour(host: str, neighbour: str) -> None:
    """An address, or a /64 network, is known for an hour after the last callback from it."""
    listener = Listener()
    first = listener.accept(host)
    listener.limiter.authenticate(first, 10)
    assert listener.class_of(listener.connect(neighbour, HOUR + 9)) is Class.KNOWN
    assert listener.class_of(listener.connect(neighbour, HOUR + 10)) is Class.UNKNOWN
    assert listener.class_of(listener.connect(B, 11)) is Class.UNKNOWN


def test_a_bounded_number_of_addresses_is_known() -> None:
    """Of the addresses from which callbacks come, the latest are known."""
    listener = Listener()
    hosts = [f"198.51.{one // 256}.{one % 256}" for one in range(1025)]
    for host in hosts:
        listener.limiter.remove(listener.accept(host))
    assert listener.class_of(listener.connect(hosts[0], 1)) is Class.UNKNOWN
    assert listener.class_of(listener.connect(hosts[1], 1)) is Class.KNOWN


def test_authenticated_connections_have_half_of_the_places() -> None:
    """For one more the idlest of them goes, and never one that is being answered."""
    listener = Listener()
    clients = [listener.accept(A, number) for number in range(4)]
    clients[0].answered = True
    clients.append(listener.accept(A, 10))
    assert [client.dropped for client in clients] == ["", "limit", "", "", ""]
    for client in clients:
        client.answered = True
    last = listener.accept(A, 11)
    assert dropped(clients) == 1
    assert listener.class_of(last) is Class.KNOWN  # as before


def test_at_an_address_limit_its_oldest_goes() -> None:
    """At an address's limit its oldest unauthenticated connection goes, and none of another address."""
    listener = Listener(total=16, each=2)
    other = listener.connect(B)
    clients = [listener.connect(A) for _ in range(3)]
    assert [client.dropped for client in [other, *clients]] == ["", "limit", "", ""]
    assert dropped([listener.accept(A) for _ in range(4)]) == 0


def test_a_trusted_proxy_has_no_limit_of_its_own() -> None:
    """All clients behind a proxy have its address; its connections count as known."""
    listener = Listener(total=16, each=2)
    clients = [listener.connect(PROXY) for _ in range(4)]
    assert dropped(clients) == 0
    assert listener.class_of(clients[0]) is Class.KNOWN


def test_behind_a_proxy_the_client_that_it_names_counts() -> None:
    """A proxy's connection counts for the client whose request it brings, until it brings another's."""
    listener = Listener()
    kept = listener.connect(PROXY)
    listener.limiter.identify(kept, A, 0)
    assert listener.class_of(kept) is Class.UNKNOWN
    listener.limiter.authenticate(kept, 0)
    listener.limiter.identify(kept, A, 1)
    assert listener.class_of(kept) is Class.AUTHENTICATED
    listener.limiter.identify(kept, B, 1)
    assert listener.class_of(kept) is Class.UNKNOWN
    listener.limiter.identify(kept, A, 2)
    assert listener.class_of(kept) is Class.KNOWN
    listener.limiter.identify(kept, PROXY, 2)  # nobody is named
    assert listener.class_of(kept) is Class.KNOWN


def test_unknown_clients_behind_a_proxy_drop_each_other() -> None:
    """Clients that a proxy names are limited like others, in all and each."""
    listener = Listener(each=2)
    authenticated = listener.connect(PROXY)
    listener.limiter.identify(authenticated, B, 0)
    listener.limiter.authenticate(authenticated, 0)
    clients = []
    for number in range(20):
        clients.append(listener.connect(PROXY))
        listener.limiter.identify(clients[-1], A if number < 10 else f"198.51.100.{number}", 0)
    assert dropped(clients[:9]) == 8 + 1
    assert dropped(clients) == 20 - 4
    assert not authenticated.dropped


@pytest.mark.parametrize("total", range(1, 20))
def test_there_are_never_more_than_the_limit(total: int) -> None:
    """Whoever comes, there are at most `max_connections`; from 4 places on there is one for everybody."""
    listener = Listener(total=total)
    for number in range(200):
        client = (listener.accept if number % 3 else listener.connect)(f"198.51.100.{number % 50}", number)
        client.answered = number % 5 == 0
        assert len(listener.limiter.connections) <= total
        assert not client.dropped or total < 4


def test_connections_are_counted_until_they_end() -> None:
    """A connection that ends, even twice, makes room for one; nothing is kept of its address."""
    listener = Listener(total=4)
    for now in range(100):
        client = listener.connect(A, now)
        listener.limiter.remove(client)
        listener.limiter.remove(client)
    assert listener.value("connections") == 0
    assert not listener.limiter.connections


def test_overdue_connections_are_dropped() -> None:
    """Connections that have missed a deadline are dropped, and no others."""
    listener = Listener()
    early, late = listener.connect(A, 0), listener.connect(B, 20)
    listener.limiter.drop_overdue(40)
    assert (early.dropped, late.dropped) == ("timeout", "")
