"""What the doctor says of a rejection to more people than those who may see the request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from receiver.protocol.signature import AuthType, sign
from receiver.rejections import NO_ENDPOINT, Rejection
from receiver.settings.settings import EndpointSettings
from receiver.tools.doctor import advice
from tests.helpers.receiver import KEY

PARAMETER, PATH = "parameter-that-is-secret", "/path-that-is-secret"
SIGNED = EndpointSettings(
    name="signed",
    live_event_type_callback_url=f"https://localhost/callbacks?token={PARAMETER}",
    key=KEY,
    previous_key="previous-key-that-is-secret",
)
OPEN = EndpointSettings(
    name="open", live_event_type_callback_url=f"https://localhost{PATH}", auth_type=AuthType.NONE, key=""
)
AT = 1_767_225_600.0
RIGHT = sign(SIGNED.live_event_type_callback_url, KEY, AT).url
SIGNATURE = RIGHT.partition("hwSecret=")[2][:64]
TARGET = RIGHT.removeprefix("https://localhost")
WRONG = Rejection(AT, "signed", "wrong", "192.0.2.1", "POST", TARGET, [("host", "localhost")], None)
UNKNOWN = replace(WRONG, endpoint=NO_ENDPOINT, reason="unknown_path")
# Each with a part of what helps.
REJECTIONS = {
    "another key": (replace(WRONG, target=TARGET.replace(SIGNATURE, "ab" * 32)), "another key is registered"),
    "another host": (
        replace(
            WRONG,
            target=sign(f"https://other.example/callbacks?token={PARAMETER}", KEY, AT).url.partition(".example")[2],
            headers=[("host", "other.example")],
        ),
        "register https://localhost/callbacks?****",
    ),
    "another parameter": (replace(WRONG, target=TARGET.replace("token=", "token=x")), "token has another value"),
    "the signature in a header": (
        replace(WRONG, target=f"/callbacks?token={PARAMETER}", headers=[("x-hw-mss-secret", SIGNATURE)]),
        "the signature is in the headers",
    ),
    "another path": (replace(UNKNOWN, target=f"/callback?{TARGET.partition('?')[2]}"), "theirs are /callbacks, /****"),
    "a path like the secret one": (replace(UNKNOWN, target=f"{PATH}/"), "theirs are /callbacks, /****"),
    "the query as a path": (replace(UNKNOWN, target=TARGET.replace("?", "%3F")), "theirs are"),
    "a parameter beside the secret": (
        replace(WRONG, endpoint="open", reason="url_mismatch", target=f"{PATH}?x=1"),
        "the URL's own parameters are not those",
    ),
    "an endpoint of earlier": (
        replace(WRONG, endpoint="earlier", target=f"{PATH}-of-earlier?x=1"),
        "is no endpoint's",
    ),
}


@pytest.mark.parametrize(("rejection", "helps"), REJECTIONS.values(), ids=REJECTIONS)
def test_helps_without_secrets(rejection: Rejection, helps: str) -> None:
    """It says what is wrong, and holds no key, signature, query, or path that is the secret or is like it."""
    said = "\n".join(advice(rejection, endpoints=[SIGNED, OPEN], max_body_bytes=1))
    assert helps in said
    for secret in (KEY, SIGNED.previous_key, PARAMETER, PATH, SIGNATURE, "ab" * 32):
        assert secret not in said


def test_path_is_shown() -> None:
    """Where no path is the secret, the one that was asked for is shown: it may have been registered wrongly."""
    shown = advice(replace(UNKNOWN, target="/callback?x=1"), endpoints=[SIGNED], max_body_bytes=1)
    assert shown[0] == "POST /callback"
