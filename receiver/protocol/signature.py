"""The signatures MSS_A and MSS_A_HEAD: who may post a live event callback.

Huawei publishes ``hwTime = hex(timestamp)`` and ``hwSecret = hmac_sha256(Key, URI(live_event_callback_url) +
hwTime)`` (API reference, "Starting a Virtual Human Intelligent Livestreaming Task", table
``LiveEventCallBackConfig``). What URI and timestamp are, byte for byte, is published only for two sibling
schemes, and they differ; each combination is a `Form` here. The body is not signed.

All times are POSIX seconds (float). A signature is checked against the *configured* URL, never the Host header.
"""

from __future__ import annotations

import enum
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import ClassVar, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

SECRET_HEADER = "x-hw-mss-secret"  # noqa: S105 (a header's name)
TIME_HEADER = "x-hw-mss-time"
SECRET_PARAMETER = "hwSecret"  # noqa: S105 (a parameter's name)
TIME_PARAMETER = "hwTime"

_SECRET = re.compile(rb"[0-9A-Fa-f]{64}")
_TIME = re.compile(rb"[0-9A-Fa-f]{1,16}")
# 8 hex digits are seconds, 11 are milliseconds. 10**11 parts them: the year 5138 in seconds, 1973 in milliseconds.
_FIRST_MILLISECONDS = 10**11
LAST_SECOND = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())  # POSIX; the latest that a time may be


class AuthType(enum.StrEnum):
    """The vendor's ``auth_type`` values that this receiver serves."""

    MSS_A = "MSS_A"
    MSS_A_HEAD = "MSS_A_HEAD"
    NONE = "NONE"


class SignatureError(Exception):
    """A request that is not to be trusted. `reason` is stable, for metrics and logs; it never holds a secret."""

    reason: ClassVar[str]


class MissingSignatureError(SignatureError):
    """The signature or its time is not there at all."""

    reason = "missing"


class MalformedSignatureError(SignatureError):
    """The signature or its time is there and is not plain hex of a possible length, under the exact name."""

    reason = "malformed"


class AmbiguousSignatureError(SignatureError):
    """The signature or its time is there more than once."""

    reason = "ambiguous"


class URLMismatchError(SignatureError):
    """The URL's own parameters are not those of the configured URL.

    `signed_at` is when the request was signed, where its signature is right nevertheless.
    """

    reason = "url_mismatch"

    def __init__(self, signed_at: float | None = None) -> None:
        super().__init__(self.reason)
        self.signed_at = signed_at


class WrongSignatureError(SignatureError):
    """No accepted key and form gives this signature."""

    reason = "wrong"


class StaleSignatureError(SignatureError):
    """The signature is right, but its time is outside the tolerance. `verified` is what it would have been."""

    reason = "stale"

    def __init__(self, verified: Verified) -> None:
        super().__init__(self.reason)
        self.verified = verified


REASONS = tuple(error.reason for error in SignatureError.__subclasses__())


@dataclass(frozen=True, slots=True)
class Form:
    """One reading of "URI + hwTime": scheme or not, query sorted or as registered, hex or decimal."""

    scheme: bool
    sorted_query: bool
    hex_time: bool

    @property
    def name(self) -> str:
        """The form's stable name, such as ``host-sorted-hex``."""
        query = "sorted" if self.sorted_query else "registered"
        return f"{'scheme' if self.scheme else 'host'}-{query}-{'hex' if self.hex_time else 'decimal'}"

    def signed_url(self, url: str) -> bytes:
        """The part of the signed text that comes from the URL, exactly as registered, in UTF-8."""
        before, question_mark, query = url.partition("?")
        if not self.scheme:
            before = before.partition("://")[2]
        if self.sorted_query:
            query = "&".join(sorted(query.split("&"), key=lambda pair: pair.partition("=")[0]))
        return (before + question_mark + query).encode()

    def signed_time(self, time_text: bytes) -> bytes:
        """The part of the signed text that comes from hwTime: the hex text itself, or its number in decimal."""
        return time_text if self.hex_time else b"%d" % int(time_text, 16)


# Likeliest first: host-sorted-hex is the form of the custom live platforms, which send the same x-hw-mss-* headers.
FORMS = {
    form.name: form for form in (Form(s, q, h) for h, s, q in product((True, False), (False, True), (True, False)))
}
LIKELIEST_FORM = "host-sorted-hex"
AUTO = "auto"


class Verified(NamedTuple):
    """What is known of an authentic request: when it was signed, as which text, in which form, by which key."""

    sent_at: float
    time_text: bytes
    form: str
    key: str


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request's URL and headers with the signature in its place."""

    url: str
    headers: dict[str, str]


def sign(  # noqa: PLR0913 (each is a choice the sender has)
    url: str,
    key: str,
    now: float,
    *,
    auth_type: AuthType = AuthType.MSS_A,
    form: str = LIKELIEST_FORM,
    milliseconds: bool = False,
) -> SignedRequest:
    """Sign as MetaStudio does: `url` as registered, `key` as registered, `now` in POSIX seconds."""
    if auth_type is AuthType.NONE:
        return SignedRequest(url, {})
    time_text = f"{round(now * 1000) if milliseconds else int(now):x}"
    chosen = FORMS[form]
    text = chosen.signed_url(url) + chosen.signed_time(time_text.encode())
    secret = hmac.new(key.encode(), text, "sha256").hexdigest()
    if auth_type is AuthType.MSS_A_HEAD:
        return SignedRequest(url, {SECRET_HEADER: secret, TIME_HEADER: time_text})
    separator = "&" if "?" in url else "?"
    return SignedRequest(f"{url}{separator}{SECRET_PARAMETER}={secret}&{TIME_PARAMETER}={time_text}", {})


class Verifier:
    """Checks requests to one registered URL. Built once: all that the URL and the keys decide is computed here.

    `keys` are the current key and, while rotating, the previous one. `form` is a name from `FORMS` or ``auto``.
    `tolerance` is in seconds, both ways.
    """

    def __init__(
        self, url: str, auth_type: AuthType, keys: Sequence[str], *, form: str = AUTO, tolerance: float = 300
    ) -> None:
        self._auth_type = auth_type
        self._tolerance = tolerance
        self._own_query = url.partition("?")[2].encode()
        self._own_parameters = _canonical(self._own_query.split(b"&"))
        # The URL as registered with the signature behind it: by far the most, and quickly read.
        before = re.escape(self._own_query + b"&") if self._own_query else b""
        self._usual_query = re.compile(before + b"hwSecret=(%b)&hwTime=(%b)" % (_SECRET.pattern, _TIME.pattern))
        # Percent-encoding at most triples a byte; the rest is room for hwSecret and hwTime. Longer ones are not read.
        self._longest_query = 3 * len(self._own_query) + 512
        forms = FORMS.values() if form == AUTO else [FORMS[form]]
        macs: dict[tuple[str, bytes, bool], tuple[str, Form, str, hmac.HMAC]] = {}
        for name, key in zip(("current", "previous"), keys, strict=False):
            for one in forms:
                text = one.signed_url(url)
                mac = hmac.new(key.encode(), text, "sha256")
                # Without several parameters sorted and registered are the same text: tried, and counted, once.
                macs.setdefault((name, text, one.hex_time), (name, one, one.name, mac))
        self._macs = tuple(macs.values())

    def verify(self, query: bytes, headers: Iterable[tuple[bytes, bytes]], now: float) -> Verified:
        """Say who signed the request, or raise a `SignatureError`.

        `query` is the raw query as received, without the question mark; `headers` have lower-case names. Only the
        signature of the configured type is looked at.
        """
        if len(query) > self._longest_query:
            raise MalformedSignatureError
        usual = self._auth_type is AuthType.MSS_A and self._usual_query.fullmatch(query)
        if usual:
            secret, time_text = usual.groups()
        else:
            own, secrets, times = _take_out_signature(query)
            if self._auth_type is AuthType.NONE:
                if not self._are_own_parameters(own):
                    raise URLMismatchError
                return Verified(sent_at=now, time_text=b"", form="", key="")
            if self._auth_type is AuthType.MSS_A_HEAD:
                secrets, times = _take_from_headers(headers)
            secret = _the_one(secrets, _SECRET)
            time_text = _the_one(times, _TIME)
            if not self._are_own_parameters(own):
                raise URLMismatchError(self._signed_at(secret, time_text))
        verified = self._match(secret, time_text)
        if abs(now - verified.sent_at) > self._tolerance:
            raise StaleSignatureError(verified)
        return verified

    def _match(self, secret: bytes, time_text: bytes) -> Verified:
        sent_at, given = _posix_seconds(time_text), bytes.fromhex(secret.decode())
        for key, form, form_name, url_mac in self._macs:
            mac = url_mac.copy()
            mac.update(form.signed_time(time_text))
            if hmac.compare_digest(mac.digest(), given):
                return Verified(sent_at, time_text, form_name, key)
        raise WrongSignatureError

    def _signed_at(self, secret: bytes, time_text: bytes) -> float | None:
        try:
            return self._match(secret, time_text).sent_at
        except SignatureError:
            return None

    def _are_own_parameters(self, own: list[bytes]) -> bool:
        # In constant time: with auth_type NONE a parameter is the secret.
        return b"&".join(own) == self._own_query or hmac.compare_digest(_canonical(own), self._own_parameters)


def _take_out_signature(query: bytes) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Part a query into its own pairs, and the values of hwSecret and of hwTime.

    A name that only means one of those (other case, percent-encoded) is no name that the sender uses: its value
    stands as malformed, so that nothing between can read the query otherwise than this receiver does.
    """
    own: list[bytes] = []
    taken: dict[bytes, list[bytes]] = {b"hwsecret": [], b"hwtime": []}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        meant = (unquote_to_bytes(name) if b"%" in name else name).lower()
        if meant not in taken:
            own.append(pair)
        else:
            exact = name in (SECRET_PARAMETER.encode(), TIME_PARAMETER.encode())
            taken[meant].append(value if exact else b"?")
    return own, taken[b"hwsecret"], taken[b"hwtime"]


def _take_from_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    taken: dict[bytes, list[bytes]] = {SECRET_HEADER.encode(): [], TIME_HEADER.encode(): []}
    for name, value in headers:
        if name in taken:
            taken[name].append(value)
    secrets, times = taken.values()
    return secrets, times


def _the_one(values: list[bytes], pattern: re.Pattern[bytes]) -> bytes:
    if not values:
        raise MissingSignatureError
    if len(values) > 1:
        raise AmbiguousSignatureError
    if not pattern.fullmatch(values[0]):
        raise MalformedSignatureError
    return values[0]


def _posix_seconds(time_text: bytes) -> float:
    number = int(time_text, 16)
    if number > LAST_SECOND * 1000:
        raise MalformedSignatureError
    return number / 1000 if number >= _FIRST_MILLISECONDS else float(number)


def _canonical(pairs: list[bytes]) -> bytes:
    """The same bytes for the same parameters, however they are encoded and ordered."""
    parted = (pair.replace(b"+", b" ").partition(b"=") for pair in pairs if pair)
    return "&".join(sorted(f"{_requoted(name)}={_requoted(value)}" for name, _, value in parted)).encode()


def _requoted(text: bytes) -> str:
    return quote_from_bytes(unquote_to_bytes(text), safe="")
