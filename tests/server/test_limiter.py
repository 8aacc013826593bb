from __future__ import annotations

from ipaddress import ip_network

from receiver.metrics import Metrics
from receiver.server.limiter import Admission, Limits

A, B, PROXY = "192.0.2.1", "192.0.2.2", "10.0.0.1"
LONG = 10.0  # more seconds than a stranger is left alone


class Client:
    """A connection that only remembers what became of it."""

    def __init__(self, admission: Admission, host: str, since: float) -> None:
        self.client_host, self.since = host, since
        self.dropped = ""
        self.answered = False
        self._admission = admission

    def drop(self, reason: str) -> None:
        """Give the place back."""
        self.dropped = reason
        self._admission.leave(self)

    def waits(self, now: float) -> float:
        """Since it came, unless it is answered now."""
        return 0 if self.answered else now - self.since

    def is_overdue(self, now: float) -> bool:
        """Never before its time."""
        return now > self.since + 30

    def finish(self, latest: float) -> None:
        """Not used here."""


class Listener:
    """An admission, and a way to come in."""

    def __init__(self, total: int = 4, each: int = 2) -> None:
        self.metrics = Metrics()
        limits = Limits(total, each, trusted_proxies=[ip_network(PROXY)])
        self.admission = Admission(limits, "public", self.metrics)

    def connect(self, host: str, now: float) -> Client | None:
        """Come in, or not."""
        if not self.admission.has_room(host, now):
            return None
        client = Client(self.admission, host, now)
        self.admission.enter(client)
        return client

    def accept(self, host: str, now: float) -> Client:
        """Come in, and have a callback accepted."""
        client = self.connect(host, now)
        assert client
        self.admission.recognize(client)
        return client

    def value(self, name: str, **labels: str) -> float | None:
        """A metric of the public listener."""
        return self.metrics.registry.get_sample_value(f"metastudio_{name}", {"listener": "public"} | labels)


def test_strangers_of_an_address_make_room_for_one_another() -> None:
    """At an address's limit the one that waited longest goes; others' connections are left alone."""
    listener = Listener()
    other = listener.connect(B, 0)
    first, second = listener.connect(A, 1), listener.connect(A, 2)
    assert first
    assert second
    assert other
    third = listener.connect(A, LONG)
    assert third
    assert (first.dropped, second.dropped, other.dropped) == ("limit", "", "")


def test_a_burst_is_not_turned_out_by_itself() -> None:
    """Strangers that only just came are left alone: then it is the newest that is refused, and counted."""
    listener = Listener()
    assert listener.connect(A, 0)
    assert listener.connect(A, 0.1)
    assert listener.connect(A, 0.2) is None
    assert listener.value("connections_dropped_total", reason="limit") == 1
    assert listener.value("connections") == 2


def test_the_oldest_stranger_makes_room_when_all_places_are_taken() -> None:
    """At the limit for all, it does not matter from where the oldest stranger comes."""
    listener = Listener(total=2)
    first, second = listener.connect(A, 0), listener.connect(B, 1)
    assert first
    assert second
    assert listener.connect("192.0.2.3", LONG)
    assert (first.dropped, second.dropped) == ("limit", "")


def test_who_was_accepted_is_the_last_to_be_turned_out() -> None:
    """Whose callback was accepted does not count for its address, and goes only after strangers, the idlest first."""
    listener = Listener(total=5)
    accepted = [listener.accept(A, number) for number in range(4)]
    accepted[0].answered = True
    stranger = listener.connect(B, 5)
    assert stranger
    assert listener.connect(B, LONG)
    assert stranger.dropped
    assert not any(client.dropped for client in accepted)
    assert listener.connect(B, LONG)
    assert [client.dropped for client in accepted] == ["", "limit", "", ""]


def test_a_callback_that_is_being_answered_is_left_alone() -> None:
    """Where nobody has to be waited for, it is the newest that is refused."""
    listener = Listener(total=2)
    for _ in range(2):
        listener.accept(A, 0).answered = True
    assert listener.connect(B, LONG) is None


def test_a_trusted_proxy_has_no_limit_of_its_own() -> None:
    """All clients behind a proxy have its address, so only the limit for all holds there."""
    listener = Listener(total=4)
    assert all(listener.connect(PROXY, 0) for _ in range(4))
    assert listener.connect(PROXY, 0) is None


def test_places_are_given_back() -> None:
    """Who leaves, even twice, gives back one place; nothing is kept of its address."""
    listener = Listener(total=2)
    for now in range(100):
        client = listener.connect(A, now)
        assert client
        listener.admission.leave(client)
        listener.admission.leave(client)
    assert listener.value("connections") == 0
    assert not listener.admission.guests


def test_a_sweep_drops_who_is_overdue() -> None:
    """Those whose time is over go, and no others."""
    listener = Listener()
    early, late = listener.connect(A, 0), listener.connect(B, 20)
    assert early
    assert late
    listener.admission.sweep(40)
    assert (early.dropped, late.dropped) == ("timeout", "")
