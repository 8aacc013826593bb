from __future__ import annotations

import hmac
import traceback
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from receiver.protocol.signature import (
    AUTO,
    FORMS,
    LIKELIEST_FORM,
    REASONS,
    AmbiguousSignatureError,
    AuthType,
    MalformedSignatureError,
    MissingSignatureError,
    SignatureError,
    SignedRequest,
    StaleSignatureError,
    URLMismatchError,
    Verified,
    Verifier,
    WrongSignatureError,
    sign,
)

NOW = 1_725_928_200.0  # 2024-09-10T00:30:00Z
TIME = b"66df9308"  # the same
TOLERANCE = 300
KEYS = ("a key of the registration", "the key before it")
URL = "https://live.example.com/callbacks?room=7&account=1"  # not in order, so every form signs another text
SIGNED = (AuthType.MSS_A, AuthType.MSS_A_HEAD)
SECRET = (
    hmac.new(KEYS[0].encode(), b"live.example.com/callbacks?account=1&room=766df9308", "sha256").hexdigest().encode()
)

Headers = list[tuple[bytes, bytes]]

each_auth_type = pytest.mark.parametrize("auth_type", SIGNED)


def verifier(auth_type: AuthType = AuthType.MSS_A, url: str = URL, form: str = AUTO) -> Verifier:
    return Verifier(url, auth_type, KEYS, form=form, tolerance=TOLERANCE)


def verify(verifier: Verifier, request: SignedRequest, now: float = NOW) -> Verified:
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return verifier.verify(request.url.partition("?")[2].encode(), headers, now)


def placed(auth_type: AuthType, secrets: Iterable[bytes], times: Iterable[bytes], own: bytes) -> tuple[bytes, Headers]:
    """The raw query and headers with these values where `auth_type` has them."""
    if auth_type is AuthType.MSS_A_HEAD:
        return own, [(b"x-hw-mss-secret", one) for one in secrets] + [(b"x-hw-mss-time", one) for one in times]
    pairs = [b"hwSecret=" + one for one in secrets] + [b"hwTime=" + one for one in times]
    return b"&".join([own, *pairs] if own else pairs), []


class Example(NamedTuple):
    """What Huawei publishes of one signature, and the form's name where both orders of the query are the same text."""

    key: str
    url: str
    form: str
    now: float
    time_text: str
    secret: str
    auto_form: str

    @property
    def milliseconds(self) -> bool:
        """Whether the time is of 11 hex digits, not of 8."""
        return len(self.time_text) == 11


OFFICIAL = {
    "custom live platform": Example(
        key="GCTbw44s6MPLh4GqgDpnfuFHgy25Enly",
        url="https://api.example.com/v1/products?live_id=111&limit=10&offset=0",
        form="host-sorted-hex",
        now=1_725_928_200.0,
        time_text="66df9308",
        secret="5e7fe8869a12a87ea966d9edbc02e38cd4ce62c73b8b05c638f15835e78902d7",
        auto_form="host-sorted-hex",
    ),
    "third-party LLM callback": Example(
        key="huawei_metaStudio",
        url="https://metastudio-llm/digital-human/chat",
        form="scheme-registered-decimal",
        now=1_744_612_873.350,
        time_text="1963307d486",
        secret="a02fc32111795dc6f760e6bd15bb0cbc9a35921dc5dc86e57eea56ae644d793e",
        auto_form="scheme-sorted-decimal",
    ),
}


@pytest.mark.parametrize("example", OFFICIAL.values(), ids=OFFICIAL)
def test_signer_reproduces_the_official_examples(example: Example) -> None:
    """Signing the published URL at the published time gives the published hwSecret and hwTime, in either place."""
    in_query, in_headers = (
        sign(
            example.url,
            example.key,
            example.now,
            auth_type=auth_type,
            form=example.form,
            milliseconds=example.milliseconds,
        )
        for auth_type in SIGNED
    )

    separator = "&" if "?" in example.url else "?"
    signed_url = f"{example.url}{separator}hwSecret={example.secret}&hwTime={example.time_text}"
    assert in_query == SignedRequest(signed_url, {})
    headers = {"x-hw-mss-secret": example.secret, "x-hw-mss-time": example.time_text}
    assert in_headers == SignedRequest(example.url, headers)


@pytest.mark.parametrize("example", OFFICIAL.values(), ids=OFFICIAL)
@each_auth_type
def test_verifier_accepts_the_official_examples(auth_type: AuthType, example: Example) -> None:
    """The published hwSecret and hwTime verify in either place, whether the form is pinned or found."""
    time_text = example.time_text.encode()
    own = example.url.partition("?")[2].encode()
    query, headers = placed(auth_type, [example.secret.encode()], [time_text], own)
    for accepted, name in ((example.form, example.form), (AUTO, example.auto_form)):
        one = Verifier(example.url, auth_type, [example.key], form=accepted)
        assert one.verify(query, headers, example.now) == Verified(example.now, time_text, name, "current")


@pytest.mark.parametrize("key", ["current", "previous"])
@pytest.mark.parametrize("milliseconds", [False, True], ids=["seconds", "milliseconds"])
@each_auth_type
@pytest.mark.parametrize("form", FORMS)
def test_verifier_names_what_the_signer_used(*, form: str, auth_type: AuthType, milliseconds: bool, key: str) -> None:
    """Every form, place, unit of time and key is accepted by default, and told apart."""
    used = KEYS[["current", "previous"].index(key)]

    signed = sign(URL, used, NOW + 0.25, auth_type=auth_type, form=form, milliseconds=milliseconds)

    sent_at, time_text = (NOW + 0.25, b"191d956583a") if milliseconds else (NOW, TIME)
    assert verify(verifier(auth_type), signed) == Verified(sent_at, time_text, form, key)


@pytest.mark.parametrize("pinned", FORMS)
def test_a_pinned_form_accepts_no_other(pinned: str) -> None:
    """Of all forms, a pinned one accepts itself alone."""

    def accepts(form: str) -> bool:
        try:
            return verify(verifier(form=pinned), sign(URL, KEYS[0], NOW, form=form)).form == pinned
        except WrongSignatureError:
            return False

    assert [form for form in FORMS if accepts(form)] == [pinned]


SIGNED_TEXTS = {
    "root without a slash": ("https://live.example.com", "host-sorted-hex", "live.example.com66df9308"),
    "scheme": ("https://live.example.com/", "scheme-registered-hex", "https://live.example.com/66df9308"),
    "default port written": ("https://live.example.com:443/c", "host-sorted-hex", "live.example.com:443/c66df9308"),
    "other port": ("https://live.example.com:9443/c", "scheme-sorted-hex", "https://live.example.com:9443/c66df9308"),
    "decimal": ("https://live.example.com/c", "host-registered-decimal", "live.example.com/c1725928200"),
    "percent-encoded path": ("https://h/%E5%95%86%2fb", "host-sorted-hex", "h/%E5%95%86%2fb66df9308"),
    "non-ASCII path": ("https://h/回调/商品1", "host-sorted-hex", "h/回调/商品166df9308"),
    "sorted query": ("https://h/c?b=2&a=1&B=3", "host-sorted-hex", "h/c?B=3&a=1&b=266df9308"),
    "registered query": ("https://h/c?b=2&a=1&B=3", "host-registered-hex", "h/c?b=2&a=1&B=366df9308"),
    "sorted by name alone": ("https://h/c?b=2&a=9&a=1&a-b=5", "host-sorted-hex", "h/c?a=9&a=1&a-b=5&b=266df9308"),
    "encoded query": ("https://h/c?x=%2B&店=一号", "scheme-sorted-decimal", "https://h/c?x=%2B&店=一号1725928200"),
    "names without values": ("https://h/c?flag&a=", "host-sorted-hex", "h/c?a=&flag66df9308"),
    "empty query": ("https://h/c?", "host-sorted-hex", "h/c?66df9308"),
    "empty pairs": ("https://h/c?b=2&&a=1", "host-registered-hex", "h/c?b=2&&a=166df9308"),
}


@pytest.mark.parametrize(("url", "form", "text"), SIGNED_TEXTS.values(), ids=SIGNED_TEXTS)
@each_auth_type
def test_the_signed_text_is_the_url_as_registered(auth_type: AuthType, url: str, form: str, text: str) -> None:
    """Port, encoding and non-ASCII text of the registered URL are signed as they stand, in the form's order."""
    secret = hmac.new(KEYS[0].encode(), text.encode(), "sha256").hexdigest()

    signed = sign(url, KEYS[0], NOW, auth_type=auth_type, form=form)

    assert secret in (signed.url if auth_type is AuthType.MSS_A else signed.headers.values())
    assert verify(verifier(auth_type, url, form), signed) == Verified(NOW, TIME, form, "current")


def test_sorted_and_registered_are_one_form_where_the_text_is_the_same() -> None:
    """A URL without several parameters matches as sorted, whichever of the two signed it, unless one is pinned."""
    url = "https://live.example.com/callbacks?room=7"
    signed = sign(url, KEYS[0], NOW, form="host-registered-hex")

    assert verify(verifier(url=url), signed).form == "host-sorted-hex"
    assert verify(verifier(url=url, form="host-registered-hex"), signed).form == "host-registered-hex"


OWN = "https://live.example.com/c?room=%E5%95%86&note=a+b&x"
SAME_ON_THE_WIRE = {
    "as registered": b"room=%E5%95%86&note=a+b&x",
    "other order": b"x&note=a+b&room=%E5%95%86",
    "lower-case escapes": b"room=%e5%95%86&note=a+b&x",
    "raw UTF-8": "room=商&note=a+b&x".encode(),
    "blank as %20": b"room=%E5%95%86&note=a%20b&x",
    "needlessly encoded": b"%72oom=%E5%95%86&note=%61+b&x",
    "empty value": b"room=%E5%95%86&note=a+b&x=",
    "empty pairs": b"&room=%E5%95%86&&note=a+b&x&",
}
DIFFERENT_ON_THE_WIRE = {
    "changed value": b"room=%E5%95%87&note=a+b&x",
    "changed name": b"rooms=%E5%95%86&note=a+b&x",
    "other case": b"Room=%E5%95%86&note=a+b&x",
    "plus itself": b"room=%E5%95%86&note=a%2Bb&x",
    "left out": b"room=%E5%95%86&note=a+b",
    "added": b"room=%E5%95%86&note=a+b&x&y",
    "repeated": b"room=%E5%95%86&note=a+b&x&x",
    "value given": b"room=%E5%95%86&note=a+b&x=1",
    "values swapped": b"room=a+b&note=%E5%95%86&x",
    "one pair for two": b"note=a+b%26room=%E5%95%86&x",
    "equals sign encoded": b"room%3D%E5%95%86&note=a+b&x",
    "semicolons": b"room=%E5%95%86;note=a+b;x",
    "none": b"",
}


def signed_own(auth_type: AuthType, own: bytes) -> tuple[bytes, Headers]:
    text = b"live.example.com/c?note=a+b&room=%E5%95%86&x" + TIME
    secret = hmac.new(KEYS[0].encode(), text, "sha256").hexdigest().encode()
    return placed(auth_type, [secret], [TIME], own)


@pytest.mark.parametrize("own", SAME_ON_THE_WIRE.values(), ids=SAME_ON_THE_WIRE)
@pytest.mark.parametrize("auth_type", AuthType)
def test_own_parameters_may_be_written_otherwise_on_the_wire(auth_type: AuthType, own: bytes) -> None:
    """The URL's own parameters are accepted in any order and encoding; what was signed is the URL as registered."""
    query, headers = signed_own(auth_type, own)

    verified = verifier(auth_type, OWN).verify(query, headers, NOW)

    unsigned = Verified(NOW, b"", "", "")
    assert verified == (unsigned if auth_type is AuthType.NONE else Verified(NOW, TIME, LIKELIEST_FORM, "current"))


@pytest.mark.parametrize("own", DIFFERENT_ON_THE_WIRE.values(), ids=DIFFERENT_ON_THE_WIRE)
@pytest.mark.parametrize("auth_type", AuthType)
def test_changed_own_parameters_are_a_mismatch(auth_type: AuthType, own: bytes) -> None:
    """A parameter changed, added, left out or repeated is not the registered URL, however right the signature is."""
    query, headers = signed_own(auth_type, own)

    with pytest.raises(URLMismatchError):
        verifier(auth_type, OWN).verify(query, headers, NOW)


@pytest.mark.parametrize(
    "query", [b"hwTime=%b&room=7&hwSecret=%b&account=1", b"account=1&hwTime=%b&room=7&hwSecret=%b"]
)
def test_the_signature_may_stand_anywhere_in_the_query(query: bytes) -> None:
    """The signature and its time are found wherever they stand among the URL's own parameters."""
    assert verifier().verify(query % (TIME, SECRET), [], NOW).form == LIKELIEST_FORM


@each_auth_type
def test_hex_of_either_case_is_accepted(auth_type: AuthType) -> None:
    """An upper-case hwSecret is the same hwSecret, and an upper-case hwTime is signed as it stands."""
    in_upper_case = b"live.example.com/callbacks?account=1&room=766DF9308"
    secret = hmac.new(KEYS[0].encode(), in_upper_case, "sha256").hexdigest().upper().encode()
    for secrets, times in (([SECRET.upper()], [TIME]), ([secret], [TIME.upper()])):
        query, headers = placed(auth_type, secrets, times, b"room=7&account=1")
        assert verifier(auth_type).verify(query, headers, NOW) == Verified(NOW, times[0], LIKELIEST_FORM, "current")


REJECTED: dict[str, tuple[list[bytes], list[bytes], type[SignatureError]]] = {
    "nothing": ([], [], MissingSignatureError),
    "no signature": ([], [TIME], MissingSignatureError),
    "no time": ([SECRET], [], MissingSignatureError),
    "signature wrong": ([b"0" * 64], [TIME], WrongSignatureError),
    "signature with another first digit": (
        [b"%x" % (15 - int(SECRET[:1], 16)) + SECRET[1:]],
        [TIME],
        WrongSignatureError,
    ),
    "signature with another last digit": (
        [SECRET[:-1] + b"%x" % (15 - int(SECRET[-1:], 16))],
        [TIME],
        WrongSignatureError,
    ),
    "signature of another time": ([SECRET], [b"66df9309"], WrongSignatureError),
    "signature wrong and stale": ([b"0" * 64], [b"66df0000"], WrongSignatureError),
    "signature empty": ([b""], [TIME], MalformedSignatureError),
    "signature after a blank": ([b" " + SECRET], [TIME], MalformedSignatureError),
    "signature before a blank": ([SECRET + b" "], [TIME], MalformedSignatureError),
    "signature before a line end": ([SECRET + b"\n"], [TIME], MalformedSignatureError),
    "signature with blanks": ([SECRET[:32] + b" " + SECRET[33:]], [TIME], MalformedSignatureError),
    "signature in 66 with blanks": ([b" ".join([SECRET[:32], SECRET[32:]])], [TIME], MalformedSignatureError),
    "signature non-ASCII": (["é".encode() * 32], [TIME], MalformedSignatureError),
    "signature in other digits": (["\N{FULLWIDTH DIGIT ZERO}".encode() * 64], [TIME], MalformedSignatureError),
    "signature not UTF-8": ([b"\xff" * 64], [TIME], MalformedSignatureError),
    "signature not hex": ([b"g" * 64], [TIME], MalformedSignatureError),
    "signature too short": ([SECRET[:63]], [TIME], MalformedSignatureError),
    "signature too long": ([SECRET + b"0"], [TIME], MalformedSignatureError),
    "signature far too long": ([SECRET * 1000], [TIME], MalformedSignatureError),
    "signature percent-encoded": ([b"%3" + SECRET], [TIME], MalformedSignatureError),
    "signature and time by semicolon": ([SECRET + b";hwTime=" + TIME], [], MalformedSignatureError),
    "signature twice": ([SECRET, SECRET], [TIME], AmbiguousSignatureError),
    "signature and a wrong one": ([SECRET, b"0" * 64], [TIME], AmbiguousSignatureError),
    "time twice": ([SECRET], [TIME, TIME], AmbiguousSignatureError),
    "time empty": ([SECRET], [b""], MalformedSignatureError),
    "time 0x": ([SECRET], [b"0x66df9308"], MalformedSignatureError),
    "time underscore": ([SECRET], [b"66df_9308"], MalformedSignatureError),
    "time plus": ([SECRET], [b"+66df9308"], MalformedSignatureError),
    "time minus": ([SECRET], [b"-66df9308"], MalformedSignatureError),
    "time after a blank": ([SECRET], [b" 66df9308"], MalformedSignatureError),
    "time before a line end": ([SECRET], [b"66df9308\n"], MalformedSignatureError),
    "time in Arabic digits": ([SECRET], ["٦٦٠٩".encode()], MalformedSignatureError),
    "time in full-width digits": ([SECRET], ["\N{FULLWIDTH DIGIT SIX}".encode() * 4], MalformedSignatureError),
    "time of 20 digits": ([SECRET], [b"0" * 12 + TIME], MalformedSignatureError),
    "time beyond the year 9999": ([SECRET], [b"f" * 16], MalformedSignatureError),
}


@pytest.mark.parametrize(("secrets", "times", "error"), REJECTED.values(), ids=REJECTED)
@each_auth_type
def test_bad_signatures_are_rejected(
    auth_type: AuthType, secrets: list[bytes], times: list[bytes], error: type[SignatureError]
) -> None:
    """Whatever is wrong with a signature or its time has one typed error, in the query as in the headers."""
    query, headers = placed(auth_type, secrets, times, b"room=7&account=1")

    with pytest.raises(SignatureError) as caught:
        verifier(auth_type).verify(query, headers, NOW)

    assert type(caught.value) is error


OTHERWISE_NAMED = {
    "other case": (b"hwsecret=%b&hwTime=%b", MalformedSignatureError),
    "upper case": (b"hwSecret=%b&HWTIME=%b", MalformedSignatureError),
    "percent-encoded name": (b"hw%%53ecret=%b&hwTime=%b", MalformedSignatureError),
    "percent-encoded other case": (b"hwSecret=%b&%%48wtime=%b", MalformedSignatureError),
    "exact and other case": (b"hwSecret=%b&hwTime=%b&hwsecret=0", AmbiguousSignatureError),
    "exact and percent-encoded": (b"hwSecret=%b&hwTime=%b&hwT%%69me=0", AmbiguousSignatureError),
    "blank after the name": (b"hwSecret+=%b&hwTime=%b", MissingSignatureError),
    "name encoded twice": (b"hw%%2553ecret=%b&hwTime=%b", MissingSignatureError),
    "semicolon": (b"hwSecret=%b;hwTime=%b", MalformedSignatureError),
    "semicolon before": (b"x=1;hwSecret=%b&hwTime=%b", MissingSignatureError),
}


@pytest.mark.parametrize(("query", "error"), OTHERWISE_NAMED.values(), ids=OTHERWISE_NAMED)
def test_only_the_exact_names_are_the_signature(query: bytes, error: type[SignatureError]) -> None:
    """A name that others may take for hwSecret or hwTime is never passed over and never believed."""
    with pytest.raises(SignatureError) as caught:
        verifier().verify(b"room=7&account=1&" + query % (SECRET, TIME), [], NOW)

    assert type(caught.value) is error


@pytest.mark.parametrize("off", [-TOLERANCE, 0, TOLERANCE])
def test_the_tolerance_holds_both_ways(off: float) -> None:
    """A signature up to the tolerance old, or ahead by as much, is fresh."""
    assert verify(verifier(), sign(URL, KEYS[0], NOW + off)).sent_at == NOW + off


@pytest.mark.parametrize("off", [-3600, -TOLERANCE - 1, TOLERANCE + 1, 3600])
@pytest.mark.parametrize("key", ["current", "previous"])
@each_auth_type
def test_a_stale_signature_tells_what_it_would_have_been(auth_type: AuthType, key: str, off: float) -> None:
    """A right signature outside the tolerance, either way, is an error that carries what was verified."""
    signed = sign(URL, KEYS[key == "previous"], NOW + off, auth_type=auth_type)

    with pytest.raises(StaleSignatureError) as caught:
        verify(verifier(auth_type), signed)

    assert caught.value.verified == Verified(NOW + off, b"%x" % int(NOW + off), LIKELIEST_FORM, key)


@pytest.mark.parametrize("auth_type", AuthType)
def test_ten_thousand_parameters_are_not_read(auth_type: AuthType) -> None:
    """A query far longer than the registered one is malformed, even with the signature in it."""
    query, headers = placed(auth_type, [SECRET], [TIME], b"room=7&account=1" + b"&a=1" * 10_000)

    with pytest.raises(MalformedSignatureError):
        verifier(auth_type).verify(query, headers, NOW)


@each_auth_type
def test_only_the_configured_place_counts(auth_type: AuthType) -> None:
    """The signature is read where auth_type has it: the other place neither helps nor harms."""
    other = next(one for one in SIGNED if one is not auth_type)
    right, wrong = ([SECRET], [TIME]), ([b"0", b"1"], [b"?"])

    def mixed(here: tuple[list[bytes], list[bytes]], there: tuple[list[bytes], list[bytes]]) -> tuple[bytes, Headers]:
        places = {auth_type: here, other: there}
        query, _ = placed(AuthType.MSS_A, *places[AuthType.MSS_A], b"room=7&account=1")
        return query, placed(AuthType.MSS_A_HEAD, *places[AuthType.MSS_A_HEAD], b"")[1]

    assert verifier(auth_type).verify(*mixed(right, wrong), NOW).form == LIKELIEST_FORM
    with pytest.raises(MissingSignatureError):
        verifier(auth_type).verify(*mixed(([], []), right), NOW)
    with pytest.raises(AmbiguousSignatureError):
        verifier(auth_type).verify(*mixed(wrong, right), NOW)


def test_none_compares_only_the_urls_own_parameters() -> None:
    """With auth_type NONE the configured parameters are the authentication, and a signature is not looked at."""
    none = Verifier(URL, AuthType.NONE, [])

    for query in (b"room=7&account=1", b"account=1&room=7", b"room=7&account=1&hwSecret=x&hwSecret=y&hwTime=0x"):
        assert none.verify(query, [(b"x-hw-mss-secret", b"?")], NOW) == Verified(NOW, b"", "", "")
    for query in (b"", b"room=7", b"room=7&account=2", b"hwSecret=%b&hwTime=%b" % (SECRET, TIME)):
        with pytest.raises(URLMismatchError):
            none.verify(query, [], NOW)
    assert sign(URL, KEYS[0], NOW, auth_type=AuthType.NONE) == SignedRequest(URL, {})


def test_reasons_are_stable() -> None:
    """Metrics and logs rely on these names."""
    assert REASONS == ("missing", "malformed", "ambiguous", "url_mismatch", "wrong", "stale")


def test_errors_hold_no_secret() -> None:
    """No error's text, representation or traceback shows a key, a signature or the URL's own parameters."""
    secrets = [*KEYS, SECRET.decode(), "room=7", "account=1"]
    cases = [*REJECTED.values(), ([SECRET], [TIME], URLMismatchError), ([SECRET], [TIME], StaleSignatureError)]
    seen = set()
    for signature, times, error in cases:
        own = b"room=7" if error is URLMismatchError else b"room=7&account=1"
        query, headers = placed(AuthType.MSS_A, signature, times, own)
        with pytest.raises(SignatureError) as caught:
            verifier().verify(query, headers, NOW + 3600 * (error is StaleSignatureError))
        shown = f"{caught.value} {caught.value!r} {traceback.format_exception(caught.value)}"
        assert not [secret for secret in secrets if secret in shown]
        seen.add(caught.value.reason)
    assert seen == set(REASONS)


@pytest.mark.parametrize(
    ("url", "form", "keys", "most"),
    [
        (URL, AUTO, KEYS, 16),
        (URL, AUTO, KEYS[:1], 8),
        ("https://live.example.com/callbacks", AUTO, KEYS, 8),
        ("https://live.example.com/callbacks", AUTO, KEYS[:1], 4),
        (URL, LIKELIEST_FORM, KEYS, 2),
    ],
)
def test_a_request_costs_a_bounded_number_of_macs(url: str, form: str, keys: tuple[str, ...], most: int) -> None:
    """What a forged request makes the receiver compute is one MAC for each key and distinct signed text."""
    macs = Verifier(url, AuthType.MSS_A, keys, form=form)._macs  # noqa: SLF001 (what a request costs shows nowhere else)

    assert len(macs) == most


@pytest.mark.parametrize("part", ["signature", "time"])
@settings(deadline=None, max_examples=200)
@given(
    form=st.sampled_from(list(FORMS)),
    auth_type=st.sampled_from(SIGNED),
    milliseconds=st.booleans(),
    position=st.integers(0, 63),
    byte=st.integers(0, 255),
)
def test_one_changed_byte_of_the_signature_is_rejected(  # noqa: PLR0913 (what is drawn)
    *, part: str, form: str, auth_type: AuthType, milliseconds: bool, position: int, byte: int
) -> None:
    """A signature or time with any one byte changed is rejected, and never as merely stale."""
    signed = sign(URL, KEYS[0], NOW, auth_type=AuthType.MSS_A_HEAD, form=form, milliseconds=milliseconds)
    values = [value.encode() for value in signed.headers.values()]
    index = ["signature", "time"].index(part)
    value = values[index]
    position %= len(value)
    old, new = value[position : position + 1], bytes([byte])
    # A hex time is signed as a text; elsewhere the same digit in the other case is the same number.
    is_text = part == "time" and FORMS[form].hex_time
    assume(new != old if is_text else new.lower() != old.lower())
    values[index] = value[:position] + new + value[position + 1 :]
    query, headers = placed(auth_type, values[:1], values[1:], b"room=7&account=1")

    with pytest.raises(SignatureError) as caught:
        verifier(auth_type).verify(query, headers, NOW)

    assert not isinstance(caught.value, StaleSignatureError)


@settings(deadline=None, max_examples=200)
@given(
    url=st.sampled_from([URL, "https://h", "https://live.example.com:8443/%E5%95%86/a?b=2&a=%2B&&c"]),
    form=st.sampled_from(list(FORMS)),
    auth_type=st.sampled_from(SIGNED),
    position=st.integers(0, 63),
    character=st.characters(min_codepoint=0x21, max_codepoint=0x7E),
)
def test_one_changed_byte_of_the_registered_url_is_rejected(
    *, url: str, form: str, auth_type: AuthType, position: int, character: str
) -> None:
    """A request signed for a URL that differs in one byte after the scheme is not for this one."""
    start = len("https://")
    position = start + position % (len(url) - start)
    assume(url[position] != character)
    configured = url[:position] + character + url[position + 1 :]

    with pytest.raises((WrongSignatureError, URLMismatchError)):
        verify(verifier(auth_type, configured), sign(url, KEYS[0], NOW, auth_type=auth_type, form=form))


_PIECES = [
    b"hwSecret=",
    b"hwTime=",
    b"hw%53ecret=",
    b"&",
    b"&",
    b"=",
    b"%",
    b";",
    b"room=7",
    b"account=1",
    SECRET,
    TIME,
]
_ANY_QUERY = st.lists(st.sampled_from(_PIECES) | st.binary(max_size=20), max_size=16).map(b"".join) | st.permutations(
    [b"room=7", b"account=1", b"hwSecret=" + SECRET, b"hwTime=" + TIME]
).map(b"&".join)
_ANY_HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"x-hw-mss-secret", b"x-hw-mss-time"]) | st.binary(max_size=20),
        st.sampled_from([SECRET, TIME]) | st.binary(max_size=80),
    ),
    max_size=5,
) | st.permutations([(b"x-hw-mss-secret", SECRET), (b"x-hw-mss-time", TIME), (b"host", b"h")])


@settings(deadline=None, max_examples=300)
@given(auth_type=st.sampled_from(AuthType), query=_ANY_QUERY, headers=_ANY_HEADERS)
def test_any_bytes_verify_or_are_a_signature_error(auth_type: AuthType, query: bytes, headers: Headers) -> None:
    """Whatever comes as query and headers either is what was signed or raises a SignatureError, and nothing else."""
    try:
        verified = verifier(auth_type).verify(query, headers, NOW)
    except SignatureError:
        return
    signed = Verified(NOW, TIME, LIKELIEST_FORM, "current")
    assert verified == (Verified(NOW, b"", "", "") if auth_type is AuthType.NONE else signed)
