from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.delivery import Delivery

DELIVERY = Delivery("default", 1_725_928_201.5, 1_725_928_200.0, b"66df9308", b"{}")

_PARTS = st.tuples(st.text("a1:", max_size=3), st.binary(max_size=3), st.sampled_from([b"", b"1", b":", b"1:", b"11"]))


def digest_of(endpoint: str, time_text: bytes, body: bytes) -> bytes:
    return Delivery(endpoint, 0, 0, time_text, body).digest


def test_the_digest_is_the_same_in_every_version() -> None:
    """The digest stands in databases: it is SHA-256 of `7:default8:66df93082:{}`, today and later."""
    assert DELIVERY.digest.hex() == "2ab566592c842a355fd6f0e943cb10c2e159b70364a51241fa20352807ffcdbe"


def test_an_exact_repeat_has_the_same_digest() -> None:
    """What the receiver adds (when it came, what it is kept for) does not make a repeat another delivery."""
    repeat = DELIVERY._replace(received_at=1_725_928_260.0, sent_at=0.0, quarantine_reason="stale")

    assert repeat.digest == DELIVERY.digest


@pytest.mark.parametrize(
    "other",
    [
        DELIVERY._replace(endpoint="other"),
        DELIVERY._replace(time_text=b"66df9309"),
        DELIVERY._replace(time_text=b"66DF9308"),
        DELIVERY._replace(time_text=b""),
        DELIVERY._replace(body=b"{ }"),
        DELIVERY._replace(body=b""),
    ],
)
def test_another_delivery_has_another_digest(other: Delivery) -> None:
    """A digest changes with the endpoint, the text of hwTime and the body, to the byte."""
    assert other.digest != DELIVERY.digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", b"b", b"c"), ("ab", b"", b"c")),
        (("a", b"b", b"c"), ("a", b"bc", b"")),
        (("a", b"", b"b"), ("a", b"b", b"")),
        (("", b"", b"1:a"), ("", b"1:a", b"")),
        (("a", b"1:b", b""), ("a1:b", b"", b"")),
        (("a", b"", b"0:"), ("a", b"0:", b"")),
    ],
)
def test_parts_do_not_run_into_each_other(one: tuple[str, bytes, bytes], other: tuple[str, bytes, bytes]) -> None:
    """The same bytes parted elsewhere are another delivery."""
    assert digest_of(*one) != digest_of(*other)


@settings(deadline=None)
@given(one=_PARTS, other=_PARTS)
def test_digests_are_equal_for_equal_parts_alone(
    one: tuple[str, bytes, bytes], other: tuple[str, bytes, bytes]
) -> None:
    """Two deliveries have the same digest exactly if endpoint, hwTime and body are the same."""
    assert (digest_of(*one) == digest_of(*other)) == (one == other)
