"""The doctor: why a captured callback is rejected, and which setting would have accepted it.

It tries what goes wrong in practice (scheme, host, port, path, query, form, key, place of the signature, clock), and
names the candidate with the fewest differences. It needs no running receiver.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from receiver.protocol.events import EventError, parse
from receiver.protocol.signature import (
    AUTO,
    SECRET_HEADER,
    SECRET_PARAMETER,
    AmbiguousSignatureError,
    AuthType,
    MalformedSignatureError,
    MissingSignatureError,
    SignatureError,
    StaleSignatureError,
    URLMismatchError,
    Verified,
    Verifier,
)
from receiver.protocol.url import callback_path
from receiver.rejections import NO_ENDPOINT, Rejection
from receiver.settings.settings import EndpointSettings
from receiver.tools.candidates import candidates
from receiver.tools.captured import Captured

_FOR_EVER = float("inf")
_MASK = "****"
_TEN_YEARS = 10 * 365 * 86400
_ADVICE: dict[type[SignatureError], str] = {
    MissingSignatureError: "there is no hwSecret and hwTime in it: auth_type NONE is registered, which is MetaStudio's"
    " default (compare with `receiver config --registration`), or something between removes them; or capture the whole"
    " URL, or give the headers too",
    MalformedSignatureError: "hwSecret must be 64 hex digits and hwTime 1 to 16, each under exactly that name:"
    " something between MetaStudio and here changes the URL, or it was not captured whole",
    AmbiguousSignatureError: "hwSecret or hwTime is there more than once: something between adds it, or the registered"
    " URL holds it already",
}


class Diagnosis(NamedTuple):
    """Whether the callback would be accepted now, and what to tell people, line by line."""

    accepted: bool
    lines: list[str]


def examine(
    endpoints: Sequence[EndpointSettings],
    captured: Captured,
    now: float,
) -> Diagnosis:
    """Say what the endpoint that the captured URL names would do with it now (POSIX seconds), and why."""
    if not captured.url:  # the headers alone: as if they had come to the URL that has its signature there
        in_headers = (one for one in endpoints if one.auth_type is AuthType.MSS_A_HEAD)
        captured = replace(captured, url=next(in_headers, endpoints[0]).live_event_type_callback_url)
    try:
        path, query = callback_path(captured.url), captured.query
    except ValueError:
        return Diagnosis(False, ["that is no URL, or no text: give what was requested, in quotes"])
    try:
        headers = captured.raw_headers
    except ValueError:
        return Diagnosis(False, ["a header is no text: give it as it was sent, in quotes"])
    same_path = [one for one in endpoints if callback_path(one.live_event_type_callback_url) == path]
    endpoint = (same_path or list(endpoints))[0]
    lines = [f"endpoint {endpoint.name}: {endpoint.public_url}, {endpoint.auth_type}, form {endpoint.signature_form}"]
    if not same_path:
        lines.append(f"the path {path.decode(errors='replace')} is no endpoint's: such a request is answered 404")
    try:
        verified = endpoint.verifier().verify(query, headers, now)
    except SignatureError as error:
        return Diagnosis(False, [*lines, *_why_rejected(error, endpoint, endpoints, captured, now)])
    if endpoint.auth_type is not AuthType.NONE:
        lines += _why_accepted(verified, endpoint, captured, now)
    elif same_path:
        lines.append("auth_type NONE: the URL is the authentication, and it is right")
    return Diagnosis(bool(same_path), lines)


def explain(rejection: Rejection, endpoints: Sequence[EndpointSettings], max_body_bytes: int) -> list[str]:
    """Say of a request that was rejected while the receiver ran what came when, and why it was, line by line."""
    at = datetime.fromtimestamp(rejection.at, UTC)
    asked = f"{rejection.method} {rejection.target} from {rejection.client}"
    lines = [f"{at:%Y-%m-%d %H:%M:%S} UTC, endpoint {rejection.endpoint}: {rejection.reason}: {asked}"]
    if rejection.endpoint == NO_ENDPOINT:
        paths = ", ".join(urlsplit(one.public_url).path for one in endpoints)
        return [*lines, f"that path is no endpoint's, and such a request is answered 404; theirs are {paths}"]
    captured = Captured(rejection.target, rejection.headers)
    endpoint = next((one for one in endpoints if one.name == rejection.endpoint), None)
    if rejection.signed_at is not None and endpoint is not None:
        of_reason = {
            "stale": [_clock(rejection.signed_at, rejection.at, endpoint)],
            "too_large": [f"and the body is larger than max_body_bytes, {max_body_bytes}"],
            "disconnected": ["and the sender or a proxy went away before the whole body was here"],
            "not_durable": ["and the event could not be put on disk: the log has why, with `journal down`"],
            "url_mismatch": _other_parameters(endpoint, captured),
        }
        return [*lines, "the signature is right", *of_reason.get(rejection.reason, [])]
    return lines + examine(endpoints, captured, rejection.at).lines


def describe_body(body: bytes) -> list[str]:
    """What the body says, or why it would go to the quarantine, line by line. A stream's key is not shown."""
    try:
        event = parse(body)
    except EventError as error:
        return [f"the body would be kept in quarantine: {error}"]
    return ["the body is understood:"] + [
        f"  {name} = {'****' if name == 'stream_key' else value}"
        for name, value in event._asdict().items()
        if value is not None
    ]


def advice(rejection: Rejection, *, endpoints: Sequence[EndpointSettings], max_body_bytes: int) -> list[str]:
    """The same for more people than those who may see the request: what was asked for, without secrets, and why.

    No query is shown, no signature, no key, and no path that is the secret, or may have been meant to be.
    """
    path = rejection.target.partition("?")[0]
    secrets = {key for one in endpoints for key in one.keys} | _signatures(rejection)
    known, is_any_secret = set[str](), False
    for one in endpoints:
        parts = urlsplit(one.live_event_type_callback_url)
        secrets.add(parts.query)
        if one.auth_type is AuthType.NONE:
            secrets.add(parts.path)
            is_any_secret = True
        else:
            known.add(parts.path)
    lines = [f"{rejection.method} {path}", *explain(rejection, endpoints, max_body_bytes)[1:]]
    if is_any_secret and path not in known | {"/"}:  # a whole path: it may be a part of one that is shown
        lines = [re.sub(rf"{re.escape(path)}(?![\w/-])", _MASK, line) for line in lines]
    return [_masked(line, secrets - {"", "/"}) for line in lines]


def _signatures(rejection: Rejection) -> set[str]:
    pairs = [pair.partition("=") for pair in rejection.target.partition("?")[2].split("&")]
    in_headers = {value.strip() for name, value in rejection.headers if name.lower() == SECRET_HEADER}
    return in_headers | {value for name, _, value in pairs if name.lower() == SECRET_PARAMETER.lower()}


def _masked(line: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        line = line.replace(secret, _MASK)
    line = re.sub(rf"({SECRET_PARAMETER}(?:=|%3D))[^&\s]*", rf"\1{_MASK}", line, flags=re.IGNORECASE)
    return re.sub(r"\?[^\s,;]+", f"?{_MASK}", line)


def _why_accepted(verified: Verified, endpoint: EndpointSettings, captured: Captured, now: float) -> Iterator[str]:
    age = now - verified.sent_at
    yield _matched(verified)
    yield f"and fresh: signed {abs(age):.0f} s {'ago' if age >= 0 else 'ahead'}"
    if verified.key == "previous":
        yield "the registered key is still the previous one: register `key`, and remove `previous_key` then"
    if captured.own_query != urlsplit(endpoint.live_event_type_callback_url).query:
        yield "its parameters came in another order or encoding than registered, which does no harm"


def _why_rejected(
    error: SignatureError,
    endpoint: EndpointSettings,
    endpoints: Sequence[EndpointSettings],
    captured: Captured,
    now: float,
) -> Iterator[str]:
    decimal = _decimal_time(captured, now)
    if isinstance(error, StaleSignatureError) and decimal is None:
        yield _matched(error.verified)
        yield _clock(error.verified.sent_at, now, endpoint)
        return
    yield f"rejected: {error.reason}"
    if decimal is not None:
        yield decimal
    elif type(error) in _ADVICE:
        yield _other_place(error, endpoint, captured) or _ADVICE[type(error)]
    elif isinstance(error, URLMismatchError):
        yield "the URL's own parameters are not those of live_event_type_callback_url: register it as it is set"
        if endpoint.auth_type is not AuthType.NONE:  # where a parameter, or its name, is the secret
            yield from _other_parameters(endpoint, captured)
            yield from _closest(endpoint, endpoints, captured)
    else:
        yield from _closest(endpoint, endpoints, captured)


def _other_place(error: SignatureError, endpoint: EndpointSettings, captured: Captured) -> str:
    """What to say where the signature is missing in its place, but is in the other one."""
    other, place = (
        (AuthType.MSS_A_HEAD, "the headers") if endpoint.auth_type is AuthType.MSS_A else (AuthType.MSS_A, "the query")
    )
    if isinstance(error, MissingSignatureError) and captured.is_signed(other):
        return f"the signature is in {place}: register {endpoint.auth_type}, or set auth_type = {other}"
    return ""


def _other_parameters(endpoint: EndpointSettings, captured: Captured) -> Iterator[str]:
    """What was added to the configured query, what is missing, and what has another value, by their names."""
    configured, seen = urlsplit(endpoint.live_event_type_callback_url).query, captured.own_query
    expected, found = (Counter(parse_qsl(query, keep_blank_values=True)) for query in (configured, seen))
    missing, added = ({name for name, _ in pairs} for pairs in (expected - found, found - expected))
    for name in sorted(missing & added):
        yield f"the parameter {name} has another value"
    for name in sorted(added - missing):
        yield f"the parameter {name} is too much: something between adds it, or it is registered so"
    for name in sorted(missing - added):
        yield f"the parameter {name} is missing: something between drops it, or it is not registered"


def _decimal_time(captured: Captured, now: float) -> str | None:
    """What to say where hwTime is a time near `now` in decimal, but not in hex."""
    for text in captured.times:
        # Seconds or milliseconds: the first ten digits are the seconds.
        if re.fullmatch(r"[0-9]{10}([0-9]{3})?", text, re.ASCII) and abs(int(text[:10]) - now) < _TEN_YEARS:
            return f"hwTime {text} is in decimal, but MetaStudio sends hex, {int(text):x}: something else signs this"
    return None


def _closest(endpoint: EndpointSettings, endpoints: Sequence[EndpointSettings], captured: Captured) -> Iterator[str]:
    if not urlsplit(captured.url).netloc and not captured.host:
        yield "no host was captured, so it cannot be judged: give the whole URL, or -H 'Host: …'"
    for url, key_name, key in candidates(endpoint, endpoints, captured):
        verifier = Verifier(url, endpoint.auth_type, (key,), tolerance=_FOR_EVER)
        try:
            verified = verifier.verify(captured.signed_query(url), captured.raw_headers, 0)
        except SignatureError:
            continue
        yield f"the signature is right for {url} with {key_name}, form {verified.form}"
        configured = endpoint.live_event_type_callback_url
        if url.startswith("http:"):
            yield f"that is not https: register {configured}"
        elif url != configured:
            yield f"register {configured}, or set live_event_type_callback_url = {url}"
        if endpoint.signature_form not in (AUTO, verified.form):
            yield f"the form is pinned to {endpoint.signature_form}: set signature_form = {verified.form}, or {AUTO}"
        if key.strip() in endpoint.keys and key not in endpoint.keys:
            yield "the registered key has that behind it: register it without, as `receiver config --registration` says"
        elif key not in endpoint.keys:
            yield "that is not this endpoint's key: set it as `key`, or as `previous_key` while the key is changed"
        return
    hosts = ", ".join(dict.fromkeys(urlsplit(url).netloc for url, *_ in candidates(endpoint, endpoints, captured)))
    yield (
        f"no URL like the configured or the captured one (hosts tried: {hosts}), with any configured key, gives this"
        " signature: most likely another key is registered; compare with `receiver config --registration`"
    )


def _matched(verified: Verified) -> str:
    return f"the signature is right: form {verified.form}, {verified.key} key"


def _clock(sent_at: float, now: float, endpoint: EndpointSettings) -> str:
    distance = now - sent_at
    return (
        f"but it was signed {abs(distance):.0f} s {'before' if distance > 0 else 'after'} now, and timestamp_tolerance"
        f" is {endpoint.timestamp_tolerance} s. For a callback captured earlier that is as it should be (give its time"
        " with --at); otherwise this machine's clock is wrong: check NTP"
    )
