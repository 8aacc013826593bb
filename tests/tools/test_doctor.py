from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from receiver.protocol.signature import FORMS, AuthType, sign
from receiver.settings.settings import EndpointSettings
from receiver.text import printable
from receiver.tools.captured import Captured
from receiver.tools.doctor import Diagnosis, describe_body, examine

NOW = 1_725_928_200.0
URL = "https://live.example.com:8443/callbacks?room=7&account=1"
ENDPOINT = EndpointSettings("default", URL, key="its own key", previous_key="its former key")
IN_HEADERS = replace(ENDPOINT, auth_type=AuthType.MSS_A_HEAD)
OTHER = EndpointSettings("other", "https://live.example.com:8443/other", key="key of the other")
NONE = EndpointSettings("open", "https://live.example.com/s3cr3t-0123456789?token=s3cr3t", AuthType.NONE)


def diagnose(*endpoints: EndpointSettings, captured: Captured, now: float = NOW) -> Diagnosis:
    return examine(endpoints, captured, now)


def capture(url: str = URL, *, key: str = ENDPOINT.key, form: str = "host-sorted-hex", at: float = NOW) -> Captured:
    """What is seen of a request that was signed for `url`, in its query."""
    return Captured(sign(url, key, at, form=form).url)


def capture_headers(*, seen: str = URL) -> Captured:
    """What is seen, at the URL `seen`, of a request that was signed in its headers."""
    headers = sign(URL, ENDPOINT.key, NOW, auth_type=AuthType.MSS_A_HEAD).headers
    return Captured(seen, [("Host", "live.example.com:8443"), *headers.items()])


def advice(diagnosis: Diagnosis) -> str:
    """The lines of a rejection."""
    assert not diagnosis.accepted
    assert all(len(line.splitlines()) == 1 for line in diagnosis.lines)
    return "\n".join(diagnosis.lines)


@pytest.mark.parametrize("form", FORMS)
def test_a_right_signature_is_accepted(form: str) -> None:
    """The endpoint, the form, the key and the age are named."""
    assert diagnose(ENDPOINT, captured=capture(form=form), now=NOW + 5) == Diagnosis(
        accepted=True,
        lines=[
            "endpoint default: https://live.example.com:8443/callbacks?****, MSS_A, form auto",
            f"the signature is right: form {form}, current key",
            "and fresh: signed 5 s ago",
        ],
    )


def test_the_previous_key_is_named() -> None:
    """A signature by the previous key is accepted, and said to be by it."""
    diagnosis = diagnose(ENDPOINT, captured=capture(key=ENDPOINT.previous_key))

    assert diagnosis.accepted
    assert "the signature is right: form host-sorted-hex, previous key" in diagnosis.lines


@pytest.mark.parametrize(
    "captured",
    [
        Captured(capture().url.removeprefix("https://live.example.com:8443")),
        Captured(capture().url.replace("room=7&account=1", "account=%31&room=7")),
        Captured(capture().url.replace("/callbacks", "/%63allbacks")),
    ],
    ids=["from the path on", "query in another order", "path encoded"],
)
def test_the_url_may_be_given_as_it_was_seen(captured: Captured) -> None:
    """A URL from a log, without its host or encoded otherwise, is understood as the receiver understands it."""
    assert diagnose(OTHER, ENDPOINT, captured=captured).accepted


def test_headers_may_be_of_any_case() -> None:
    """Header names are taken in any case, and blanks around name and value are not minded."""
    captured = capture_headers()
    shouted = replace(captured, headers=[(f" {name.upper()} ", f" {value} ") for name, value in captured.headers])

    assert diagnose(IN_HEADERS, captured=shouted).accepted


def test_the_headers_alone_are_enough() -> None:
    """Without a captured URL, the headers are checked against the endpoint's own."""
    assert diagnose(IN_HEADERS, captured=capture_headers(seen="")).accepted


def test_the_root_may_be_registered_without_its_slash() -> None:
    """A registered URL without a path receives on `/`, and that is its path here too."""
    root = replace(ENDPOINT, live_event_type_callback_url="https://live.example.com")
    captured = Captured(capture("https://live.example.com").url.replace("?", "/?"))

    assert diagnose(root, captured=captured).accepted


@pytest.mark.parametrize(("off", "side"), [(-4000, "4000 s before now"), (4000, "4000 s after now")])
def test_a_stale_clock_is_told_either_way(off: float, side: str) -> None:
    """A right signature outside the tolerance is rejected, with its distance and what to do."""
    text = advice(diagnose(ENDPOINT, captured=capture(at=NOW + off)))

    assert "the signature is right: form host-sorted-hex, current key" in text
    assert side in text
    assert "timestamp_tolerance is 300 s" in text
    assert "--at" in text
    assert "check NTP" in text


def test_a_wrongly_pinned_form_is_named() -> None:
    """Where only the pinned form is in the way, the form to set is named."""
    pinned = replace(ENDPOINT, signature_form="host-sorted-hex")

    text = advice(diagnose(pinned, captured=capture(form="scheme-registered-decimal")))

    assert "the form is pinned to host-sorted-hex: set signature_form = scheme-registered-decimal, or auto" in text


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("scheme")])
def test_a_url_registered_as_http_is_named(form: str) -> None:
    """A signature over http:// is told, and that https has to be registered."""
    http = URL.replace("https:", "http:")
    captured = Captured(capture(http, form=form).url.replace("http:", "https:"))

    text = advice(diagnose(ENDPOINT, captured=captured))

    assert f"the signature is right for {http} with the current key, form {form}" in text
    assert f"that is not https: register {URL}" in text


# What was registered, and what is seen of it: the URL without the signature, and the Host header.
REGISTERED = {
    "other host in the URL": ("https://other.example.com/callbacks?room=7&account=1", ..., ""),
    "other host in the header": (
        "https://other.example.com/callbacks?room=7&account=1",
        "/callbacks?room=7&account=1",
        "other.example.com",
    ),
    "other port": ("https://live.example.com:9443/callbacks?room=7&account=1", ..., ""),
    "no port": ("https://live.example.com/callbacks?room=7&account=1", URL, ""),
    "default port": ("https://live.example.com:443/callbacks?room=7&account=1", URL, ""),
    "slash at the end": ("https://live.example.com:8443/callbacks/?room=7&account=1", ..., ""),
    "slash at the end, lost on the way": ("https://live.example.com:8443/callbacks/?room=7&account=1", URL, ""),
    "other path": ("https://live.example.com:8443/hooks?room=7&account=1", ..., ""),
    "other query": ("https://live.example.com:8443/callbacks?room=8", ..., ""),
    "no query": ("https://live.example.com:8443/callbacks", ..., ""),
    "other host and path": ("https://other.example.com/hooks?room=7&account=1", ..., ""),
}


@pytest.mark.parametrize(("registered", "seen", "host"), REGISTERED.values(), ids=REGISTERED)
def test_another_registered_url_is_found(registered: str, seen: Any, host: str) -> None:
    """What was registered instead is named, with both ways out: the registration or the setting."""
    signed = capture(registered).url
    if seen is not ...:
        signed = f"{seen}&{signed[signed.index('hwSecret') :]}"

    text = advice(diagnose(ENDPOINT, captured=Captured(signed, [("Host", host)] if host else [])))

    assert f"the signature is right for {registered} with the current key, form host-sorted-hex" in text
    assert f"register {URL}, or set live_event_type_callback_url = {registered}" in text


def test_a_slash_too_many_in_the_setting_is_found() -> None:
    """A setting with a slash at the end is compared without it too, even if something on the way adds it."""
    endpoint = replace(ENDPOINT, live_event_type_callback_url="https://live.example.com/callbacks/")
    captured = Captured(capture("https://live.example.com/callbacks").url.replace("?", "/?"))

    text = advice(diagnose(endpoint, captured=captured))

    assert "the signature is right for https://live.example.com/callbacks with the current key" in text


def test_other_parameters_than_the_registered_are_told() -> None:
    """Parameters that are not the configured URL's are said to be the fault."""
    text = advice(diagnose(ENDPOINT, captured=capture("https://live.example.com:8443/callbacks?room=8")))

    assert "rejected: url_mismatch" in text
    assert "the URL's own parameters are not those of live_event_type_callback_url" in text


def test_a_path_rewritten_on_the_way_is_found() -> None:
    """Where a proxy strips a prefix, the path is no endpoint's and the signature is right for the configured URL."""
    text = advice(diagnose(ENDPOINT, captured=Captured(capture().url.replace("/callbacks", "/"))))

    assert "the path / is no endpoint's: such a request is answered 404" in text
    assert "the signature is right: form host-sorted-hex, current key" in text


@pytest.mark.parametrize(
    ("registered", "configured"),
    [
        ("https://live.example.com/回调", "https://live.example.com/%E5%9B%9E%E8%B0%83"),
        ("https://live.example.com/%E5%9B%9E%E8%B0%83", "https://live.example.com/回调"),
    ],
)
def test_another_encoding_of_the_path_is_found(registered: str, configured: str) -> None:
    """A path registered with or without percent-encoding, contrary to the setting, is named as it was registered."""
    endpoint = replace(ENDPOINT, live_event_type_callback_url=configured)
    captured = Captured(capture(registered).url.replace("回调", "%E5%9B%9E%E8%B0%83"))

    text = advice(diagnose(endpoint, captured=captured))

    assert f"register {configured}, or set live_event_type_callback_url = {registered}" in text
    assert "404" not in text


@pytest.mark.parametrize("previous_key", ["", "previous key of the other"])
def test_another_endpoints_key_is_found(previous_key: str) -> None:
    """The endpoint whose key was used is named, whether or not it has a previous one too."""
    other = replace(OTHER, previous_key=previous_key)
    for key in other.keys:
        text = advice(diagnose(ENDPOINT, other, captured=capture(key=key)))

        assert "with the key of endpoint other" in text
        assert "that is not this endpoint's key: set it as `key`" in text
        assert key not in text


def test_the_fewest_differences_are_named() -> None:
    """Of several explanations the nearest is given: another key alone, rather than another key and host."""
    text = advice(diagnose(ENDPOINT, OTHER, captured=capture(key=OTHER.key)))

    assert f"the signature is right for {URL} with the key of endpoint other" in text
    assert "register" not in text


def test_an_unknown_key_is_the_likeliest_of_the_rest() -> None:
    """Where nothing tried gives the signature, an unknown key is said to be likely, and no key is shown."""
    text = advice(diagnose(ENDPOINT, OTHER, captured=capture(key="nobody's key")))

    assert "rejected: wrong" in text
    assert "most likely another key is registered" in text
    assert not [key for key in (*ENDPOINT.keys, *OTHER.keys) if key in text]


def test_a_signature_in_the_other_place_is_told() -> None:
    """A signature in the headers where the query was expected, or the reverse, says what to register or set."""
    in_headers = advice(diagnose(ENDPOINT, captured=capture_headers()))
    in_query = advice(diagnose(IN_HEADERS, captured=capture()))

    assert "the signature is in the headers: register MSS_A, or set auth_type = MSS_A_HEAD" in in_headers
    assert "the signature is in the query: register MSS_A_HEAD, or set auth_type = MSS_A" in in_query


SIGNED = capture().url
BROKEN = {
    "missing": (URL, "rejected: missing", "capture the whole URL"),
    "missing time": (SIGNED.partition("&hwTime")[0], "rejected: missing", "capture the whole URL"),
    "malformed": (SIGNED.replace("hwTime=", "hwTime=0x"), "rejected: malformed", "64 hex digits"),
    "cut short": (SIGNED.replace("&hwTime", "x&hwTime"), "rejected: malformed", "not captured whole"),
    "other case": (SIGNED.replace("hwSecret", "hwsecret"), "rejected: malformed", "under exactly that name"),
    "ambiguous": (f"{SIGNED}&hwTime=66df9308", "rejected: ambiguous", "more than once"),
}


@pytest.mark.parametrize(("url", "reason", "remedy"), BROKEN.values(), ids=BROKEN)
def test_a_broken_signature_is_told(url: str, reason: str, remedy: str) -> None:
    """A signature that is missing, malformed or ambiguous has its own advice."""
    text = advice(diagnose(ENDPOINT, captured=Captured(url)))

    assert reason in text
    assert remedy in text


def test_an_unknown_path_is_told() -> None:
    """A path of no endpoint is answered 404, and the first endpoint is what it is compared with."""
    diagnosis = diagnose(ENDPOINT, OTHER, captured=Captured("/nowhere"))

    assert "endpoint default" in advice(diagnosis)
    assert "the path /nowhere is no endpoint's: such a request is answered 404" in diagnosis.lines


@pytest.mark.parametrize("url", ["https://[live.example.com/callbacks", "/callbacks?\udcff"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    """What was pasted by mistake is a rejection, not a traceback."""
    assert not diagnose(ENDPOINT, captured=Captured(url)).accepted


def test_none_is_accepted_by_its_url() -> None:
    """With auth_type NONE the URL decides, and it is not shown."""
    diagnosis = diagnose(ENDPOINT, NONE, captured=Captured("/s3cr3t-0123456789?token=s3cr3t"))

    assert diagnosis == Diagnosis(
        accepted=True,
        lines=[
            "endpoint open: https://live.example.com/****?****, NONE, form auto",
            "auth_type NONE: the URL is the authentication, and it is right",
        ],
    )


@pytest.mark.parametrize("endpoints", [(NONE,), (NONE, OTHER)], ids=["alone", "beside another"])
def test_none_with_other_parameters_is_a_mismatch_alone(endpoints: tuple[EndpointSettings, ...]) -> None:
    """With auth_type NONE nothing is said of signatures and keys, and the configured URL is not shown."""
    text = advice(diagnose(*endpoints, captured=Captured("/s3cr3t-0123456789?token=wrong")))

    assert "the URL's own parameters are not those of live_event_type_callback_url" in text
    assert "s3cr3t" not in text
    assert "signature" not in text
    assert "another key" not in text


def test_none_with_another_path_is_not_right() -> None:
    """With auth_type NONE another path is another URL: it is not said to be right."""
    text = advice(diagnose(NONE, captured=Captured("/wrong?token=s3cr3t")))

    assert "the path /wrong is no endpoint's" in text
    assert "it is right" not in text
    assert "s3cr3t" not in text


def test_a_body_is_shown_without_the_streams_key() -> None:
    """Every field that a body has is shown; of the stream's key only that there is one."""
    message = {"job_id": "j", "output_url": "rtmp://h/直播", "stream_key": "s3cr3t", "state": "END", "other": 1}
    body = json.dumps({"event_type": "RTMP_STREAM_STATE_CHANGE", "message": json.dumps(message)}).encode()

    assert describe_body(body) == [
        "the body is understood:",
        "  event_type = RTMP_STREAM_STATE_CHANGE",
        "  job_id = j",
        "  output_url = rtmp://h/直播",
        "  stream_key = ****",
        "  state = END",
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json: "),
        (b"\xff", "not_utf8: "),
        (b'{"event_type":"REPLY_COMMAND_FINISH","message":{}}', "missing_field: job_id "),
        (b'{"event_type":"X","message":[]}', "invalid_message: "),
    ],
)
def test_a_body_for_the_quarantine_has_its_reason(body: bytes, reason: str) -> None:
    """A body that is not understood is said to be kept, and under which reason."""
    (line,) = describe_body(body)

    assert line.startswith(f"the body would be kept in quarantine: {reason}")


# What anybody may send as a Host, or paste: no host, no UTF-8 (as the command line decodes it), to control a terminal.
HOSTS = {
    "bracket": "[",
    "brackets": "][",
    "no end": "[::1",
    "not UTF-8": "\udcff.example.com",
    "escape sequence": "a\x1b]0;title\x07b",
    "C1 control": "a\x9b31mb",
    "bidirectional override": "moc.\u202eelpmaxe",
    "line separator": "a\u2028b",
    "line end": "a\r\nb",
    "IDN": "直播.example",
    "IDN that no URL takes": "\u2100.example",
    "user and password": "user:password@host",
    "path and query": "host/path?query#fragment",
    "port that is none": "host:port:99999",
    "too long": "a" * 70_000,
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("key", [ENDPOINT.key, "nobody's key"], ids=["right", "wrong"])
def test_any_host_is_taken(host: str, key: str) -> None:
    """Whatever stands as the Host or in the URL, there is a diagnosis."""
    url = sign("https://elsewhere.example.com/callbacks", key, NOW).url
    in_header = Captured(url, [("Host", host)])
    in_url = Captured(url.replace("elsewhere.example.com", host))
    for captured in (in_header, in_url, replace(in_header, url=url.removeprefix("https://elsewhere.example.com"))):
        assert advice(
            Diagnosis(accepted=False, lines=[printable(one) for one in diagnose(ENDPOINT, captured=captured).lines])
        )


@pytest.mark.parametrize("header", [("Host", "\udcff"), ("\udcff", "a"), ("x-hw-mss-secret", "\ud800")])
def test_a_header_that_is_no_text_is_told(header: tuple[str, str]) -> None:
    """A header with bytes that are not UTF-8 is named as the fault, not the URL."""
    (line,) = diagnose(ENDPOINT, captured=Captured(URL, [header])).lines

    assert line == "a header is no text: give it as it was sent, in quotes"


def test_an_idn_host_is_found() -> None:
    """A URL that was registered with a name of another script is found by the Host that came."""
    registered = "https://直播.example/callbacks?room=7&account=1"
    signed = capture(registered).url.removeprefix("https://直播.example")

    text = advice(diagnose(ENDPOINT, captured=Captured(signed, [("Host", "直播.example")])))

    assert f"set live_event_type_callback_url = {registered}" in text
