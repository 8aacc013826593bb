"""Twenty requests as they are captured in practice, and the one sentence that each must lead to."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from receiver.protocol.signature import AuthType, sign
from receiver.settings.settings import EndpointSettings
from receiver.tools.captured import Captured
from receiver.tools.doctor import examine

NOW = 1_725_928_200.0
HOST = "live.example.com"
URL = f"https://{HOST}/callbacks?room=7&account=1"
KEY, FORMER = "the key of the default one", "its former key"
OTHERS_KEY = "the key of the shop's"
HEAD_URL, NONE_URL = f"https://{HOST}/head", f"https://{HOST}/open-0123456789abcdef"
ENDPOINTS = (
    EndpointSettings("default", URL, key=KEY, previous_key=FORMER),
    EndpointSettings("head", HEAD_URL, AuthType.MSS_A_HEAD, key=KEY),
    EndpointSettings("shop", f"https://{HOST}/shop", key=OTHERS_KEY),
    EndpointSettings("open", NONE_URL, AuthType.NONE),
)


class Case(NamedTuple):
    """What was seen, and what has to be said."""

    url: str
    sentence: str
    headers: tuple[tuple[str, str], ...] = (("Host", HOST),)


def signed(url: str = URL, key: str = KEY, at: float = NOW, form: str = "host-sorted-hex") -> str:
    """A request's target: its path and its query with the signature."""
    return sign(url, key, at, form=form).url.partition(HOST)[2]


def in_headers(key: str = KEY) -> tuple[tuple[str, str], ...]:
    """The headers of a request that is signed there."""
    return ("Host", HOST), *sign(HEAD_URL, key, NOW, auth_type=AuthType.MSS_A_HEAD).headers.items()


def decimal(target: str) -> str:
    """A target with its time in decimal."""
    return f"{target.partition('hwTime=')[0]}hwTime={NOW:.0f}"


CASES = {
    "accepted": Case(signed(), "and fresh: signed 0 s ago"),
    "parameters in another order": Case(
        signed().replace("room=7&account=1", "account=1&room=7"),
        "its parameters came in another order or encoding than registered, which does no harm",
    ),
    "previous key": Case(
        signed(key=FORMER),
        "the registered key is still the previous one: register `key`, and remove `previous_key` then",
    ),
    "parameter added": Case(
        signed().replace("room=7", "room=7&utm=x"),
        "the parameter utm is too much: something between adds it, or it is registered so",
    ),
    "parameter dropped": Case(
        signed().replace("room=7&", ""),
        "the parameter room is missing: something between drops it, or it is not registered",
    ),
    "parameter changed": Case(signed().replace("room=7", "room=8"), "the parameter room has another value"),
    "key with a newline": Case(
        signed(key=f"{KEY}\n"),
        "the registered key has that behind it: register it without, as `receiver config --registration` says",
    ),
    "key with a Windows newline": Case(
        signed(key=f"{KEY}\r\n"),
        f"the signature is right for {URL} with the current key and a newline, form host-sorted-hex",
    ),
    "key of another endpoint": Case(
        signed(key=OTHERS_KEY), f"the signature is right for {URL} with the key of endpoint shop, form host-sorted-hex"
    ),
    "unknown key": Case(
        signed(key="nobody's"),
        "no URL like the configured or the captured one (hosts tried: live.example.com, live.example.com:443,"
        " live.example.com:8443), with any configured key, gives this signature: most likely another key is registered;"
        " compare with `receiver config --registration`",
    ),
    "path alone, wrong": Case(
        signed(key="nobody's"), "no host was captured, so it cannot be judged: give the whole URL, or -H 'Host: …'", ()
    ),
    "other host": Case(
        sign(URL.replace(HOST, "old.example.com"), KEY, NOW).url.partition("old.example.com")[2],
        f"register {URL}, or set live_event_type_callback_url = {URL.replace(HOST, 'old.example.com')}",
        (("Host", "old.example.com"),),
    ),
    "decimal time": Case(
        decimal(signed()),
        "hwTime 1725928200 is in decimal, but MetaStudio sends hex, 66df9308: something else signs this",
    ),
    "NONE is registered": Case(
        "/callbacks?room=7&account=1",
        "there is no hwSecret and hwTime in it: auth_type NONE is registered, which is MetaStudio's default (compare"
        " with `receiver config --registration`), or something between removes them; or capture the whole URL, or give"
        " the headers too",
    ),
    "MSS_A_HEAD is registered": Case(
        "/callbacks?room=7&account=1",
        "the signature is in the headers: register MSS_A, or set auth_type = MSS_A_HEAD",
        in_headers(),
    ),
    "MSS_A is registered": Case(
        signed(HEAD_URL), "the signature is in the query: register MSS_A_HEAD, or set auth_type = MSS_A"
    ),
    "headers with another endpoint's key": Case(
        "/head",
        f"the signature is right for {HEAD_URL} with the key of endpoint shop, form host-sorted-hex",
        in_headers(OTHERS_KEY),
    ),
    "stale": Case(
        signed(at=NOW - 4000),
        "but it was signed 4000 s before now, and timestamp_tolerance is 300 s. For a callback captured earlier that is"
        " as it should be (give its time with --at); otherwise this machine's clock is wrong: check NTP",
    ),
    "cut by a log": Case(
        signed()[:-30],
        "hwSecret must be 64 hex digits and hwTime 1 to 16, each under exactly that name: something between MetaStudio"
        " and here changes the URL, or it was not captured whole",
    ),
    "unknown path": Case("/hook", "the path /hook is no endpoint's: such a request is answered 404"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_leads_to_its_sentence(case: Case) -> None:
    """The sentence stands in the answer, as a line of its own; no key and no secret URL does."""
    diagnosis = examine(ENDPOINTS, Captured(case.url, case.headers), NOW)
    assert case.sentence in diagnosis.lines
    text = "\n".join(diagnosis.lines)
    assert not any(secret in text for secret in (KEY, FORMER, OTHERS_KEY, NONE_URL.rpartition("/")[2]))
