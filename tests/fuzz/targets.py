"""What is fuzzed: the signature, the body, the forwarded headers and the doctor by themselves, and HTTP as a whole.

Each check raises AssertionError where an invariant does not hold; any other exception is a fault too.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from receiver.addresses import client_address
from receiver.protocol.events import Event, EventError, parse
from receiver.protocol.signature import AuthType, SignatureError, StaleSignatureError, Verifier
from receiver.settings.settings import EndpointSettings
from receiver.text import printable
from receiver.tools.captured import Captured
from receiver.tools.doctor import examine
from tests.fuzz import generate
from tests.fuzz.generate import NOW, REGISTRATIONS, TOLERANCE, TRUSTED, Case
from tests.fuzz.oracle import Headers, chain, forwarded_hops, judge

MOST_SECONDS = 1.0  # of processor time, for one case


@dataclass(frozen=True)
class Target:
    """Something that takes bytes from outside; `folder` is its part of the corpus.

    `cost` is about how many times as long as one of the cheapest target a case takes.
    """

    name: str
    folder: str
    generate: Callable[[Random], Case]
    check: Callable[[Case], None]
    cost: int = 1
    is_repeatable: bool = True  # whether it says at once, of each case, what is wrong

    def run(self, case: Case) -> None:
        """Check one case, and its time where it has all of it."""
        began = time.process_time()
        self.check(case)
        took = time.process_time() - began
        assert took < MOST_SECONDS or not self.is_repeatable, f"it took {took:.1f} s of processor time"


def endpoints() -> list[EndpointSettings]:
    """The registrations as the receiver's settings have them."""
    return [
        EndpointSettings(one.name, one.url, AuthType(one.auth_type), key, previous_key, timestamp_tolerance=TOLERANCE)
        for one in REGISTRATIONS
        for key, previous_key in [(*one.keys, "", "")[:2]]
    ]


_VERIFIERS: list[Verifier] = [one.verifier() for one in endpoints()]


def _lines(data: bytes) -> tuple[bytes, Headers]:
    first, *rest = data.split(b"\r\n")
    parted = (line.partition(b":") for line in rest)
    return first, [(name.strip().lower(), value.strip(b" \t")) for name, _, value in parted]


def check_signature(case: Case) -> None:
    """The verifier raises its own errors alone, and says of each request what the oracle says."""
    query, headers = _lines(case.data)
    verdicts = []
    for registration, verifier in zip(REGISTRATIONS, _VERIFIERS, strict=True):
        try:
            verifier.verify(query, headers, NOW)
            verdict = "accepted"
        except StaleSignatureError:
            verdict = "stale"
        except SignatureError:
            verdict = "rejected"
        right = judge(registration, query, headers, NOW, TOLERANCE)
        assert verdict == right, f"{registration.name}: {verdict}, where {right} is right"
        verdicts.append(verdict)
    assert not case.is_right or "accepted" in verdicts, verdicts


def check_body(case: Case) -> None:
    """The parser raises its own error alone, and what it returns can be stored, and was in the body."""
    try:
        event = parse(case.data)
    except EventError:
        if case.is_right:
            raise
        return
    said = _everything_said(case.data)
    for name, value in event._asdict().items():
        if value is None:
            continue
        if name == "shoot_script_sequence_no":
            assert isinstance(value, int)
            assert -(2**63) <= value < 2**63
        else:
            assert isinstance(value, str)
            assert value
            assert "\0" not in value
            value.encode()
        assert said is None or str(value) in said, f"{name} is nowhere in the body"
    assert isinstance(event, Event)


def _everything_said(body: bytes) -> set[str] | None:
    """All texts and numbers in a body, as texts; None where it is JSON only for the receiver."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            for one in value.values():
                collect(one)
        elif isinstance(value, str):
            found.add(value)
            if value.lstrip("-").isdecimal() and len(value) < 30:
                found.add(str(int(value)))
        elif isinstance(value, int | float):
            found.add(str(value))

    try:
        outer = json.loads(body)
        collect(outer)
        collect(json.loads(outer["message"]) if isinstance(outer["message"], str) else outer["message"])
    except (ValueError, RecursionError):
        return None
    return found


def check_forwarded(case: Case) -> None:
    """The client is the peer or an address that only trusted proxies can have named, and the last of those if right."""
    _, headers = _lines(b"\r\n" + case.data)
    by_name: dict[bytes, list[str]] = {}
    for name, value in headers:
        by_name.setdefault(name, []).append(value.decode("latin-1"))
    hops: dict[bytes, list[str | None]] = {
        b"x-forwarded-for": [*",".join(by_name.get(b"x-forwarded-for", [])).split(",")],
        b"forwarded": forwarded_hops(",".join(by_name.get(b"forwarded", []))),
    }
    if any(element.lower().count("for=") > 1 for element in ",".join(by_name.get(b"forwarded", [])).split(",")):
        return  # which of two counts is nowhere said
    trusted = [ipaddress.ip_network(TRUSTED)]
    for peer in ("127.0.0.1", "::ffff:127.0.0.1", "198.51.100.50"):
        found = client_address(peer, headers, trusted)
        possible = [chain(peer, one, TRUSTED) for name, one in hops.items() if name in by_name] or [[]]
        itself = {peer, *chain(peer, [], TRUSTED)}
        assert found in itself.union(*possible), f"{found} is named by nobody who is trusted"
        if case.is_right and peer == "127.0.0.1":
            assert found == possible[0][-1], f"{found}, not {possible[0][-1]}"


def doctor_case(random: Random) -> Case:
    """A captured URL and, in lines after it, headers as somebody types them."""
    query, _, headers = generate.signature_case(random).data.partition(b"\r\n")
    path = random.choice(REGISTRATIONS).url.partition("example.com")[2].partition("?")[0].encode()
    hosts = (b"callbacks.example.com", b"[", b"[::1]:443", "直播.example".encode(), b"a:b:c", b"\xff", b"")
    url = b"https://" + random.choice(hosts) + path + b"?" + query
    data = url + b"\r\nHost: " + random.choice(hosts) + b"\r\n" + headers
    return Case(generate.broken(random, data), is_right=False)


def check_doctor(case: Case) -> None:
    """Whatever was pasted, there is a diagnosis; it can be printed, and shows no key."""
    # As the command line decodes its arguments.
    url, *lines = case.data.decode("utf-8", "surrogateescape").replace("\0", "").split("\r\n")
    headers = [(line.partition(":")[0], line.partition(":")[2]) for line in lines]
    diagnosis = examine(endpoints(), Captured(url, headers), NOW)
    assert diagnosis.lines
    for line in map(printable, diagnosis.lines):
        assert line.isprintable()
        line.encode()
        assert not any(
            key in line for one in REGISTRATIONS for key in one.keys if key not in case.data.decode("latin-1")
        )


PURE = (
    Target("signature", "signature", generate.signature_case, check_signature),
    Target("body", "body", generate.body_case, check_body),
    Target("forwarded", "forwarded", generate.forwarded_case, check_forwarded, cost=4),
    Target("doctor", "doctor", doctor_case, check_doctor, cost=10),
)
