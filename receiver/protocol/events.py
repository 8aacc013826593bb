"""Callback bodies: JSON whose ``message`` is JSON again, into one typed `Event`.

Types and fields are those of Huawei's ``LiveEventCallBackConfig``. Whatever bytes come in, `parse` either returns an
`Event` or raises `EventError`: what it does not understand is kept in quarantine, so it can afford to be strict.
"""

from __future__ import annotations

import enum
import json
import re
from typing import Any, NamedTuple, NoReturn

LONGEST_NAME = 255  # characters of an id, type or state: these are indexed
_INTEGERS = 2**63  # from minus that to below it: what a database's bigint holds
_INTEGER = re.compile(r"-?[0-9]{1,19}")
# The third official sample does not escape the quote that ends the inner object: ...4c49c3c"}"}
_UNESCAPED_END = re.compile(r'(?<!\\)"(\s*\}"\s*\}\s*)\Z')


class EventType(enum.StrEnum):
    """The documented ``callback_event_type`` values."""

    SHOOT_SCRIPT_SWITCH = "SHOOT_SCRIPT_SWITCH"
    RTMP_STREAM_STATE_CHANGE = "RTMP_STREAM_STATE_CHANGE"
    REPLY_COMMAND_FINISH = "REPLY_COMMAND_FINISH"


class StreamState(enum.StrEnum):
    """The documented ``state`` values. No reconnection follows ``END``."""

    CONNECTING = "CONNECTING"
    CONNECTED = "CONNECTED"
    DISCONNECTED = "DISCONNECTED"
    RECONNECTING = "RECONNECTING"
    END = "END"


# Where an event stands among those of its job that were sent at the same time; all others are 1, and stand as they
# were received. Signed times are in whole seconds, and requests may overtake each other.
PLACES_IN_SECOND: dict[str | None, int] = {StreamState.CONNECTING: 0, StreamState.END: 2}


class Reason(enum.StrEnum):
    """Why a body is not understood. Stable: these stand in the database and in logs."""

    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    REPEATED_KEY = "repeated_key"
    NUMBER_TOO_LONG = "number_too_long"
    NOT_AN_OBJECT = "not_an_object"
    INVALID_MESSAGE = "invalid_message"
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"
    UNSTORABLE_TEXT = "unstorable_text"


class EventError(Exception):
    """A body that is not understood: the stable `reason`, and a `detail` for people that names the field at fault."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Event(NamedTuple):
    """One event. Fields are the vendor's; those that its type does not have, or that were left out, are None."""

    event_type: str
    room_id: str | None = None
    job_id: str | None = None
    scene_script_name: str | None = None
    shoot_script_sequence_no: int | None = None
    shoot_script_title: str | None = None
    output_url: str | None = None
    stream_key: str | None = None
    state: str | None = None
    reply_id: str | None = None
    live_id: str | None = None
    product_id: str | None = None
    product_title: str | None = None


_IDS = ("room_id", "job_id")
_FIELDS: dict[str, tuple[str, ...]] = {
    EventType.SHOOT_SCRIPT_SWITCH: (*_IDS, "scene_script_name", "shoot_script_sequence_no", "shoot_script_title"),
    EventType.RTMP_STREAM_STATE_CHANGE: (*_IDS, "output_url", "stream_key", "state"),
    EventType.REPLY_COMMAND_FINISH: (*_IDS, "reply_id"),
}
# Without these an event says nothing: which job it is about, and what a stream's state is.
_REQUIRED = ("job_id", "state")
_NAMES = frozenset({"room_id", "job_id", "state", "reply_id", "live_id", "product_id"})
# What a paragraph's event tells of the product where a live platform is connected: in the vendor's SDK's words
# (RelationProductInfo, PlatformLiveInfo), or in Meituan's. Where in the message is not published.
_PRODUCT = {
    "live_id": ("live_id", "liveId"),
    "product_id": ("product_id", "goodsId"),
    "product_title": ("product_title", "goodsTitle"),
}
_PRODUCT_SPELLINGS = frozenset(spelling for spellings in _PRODUCT.values() for spelling in spellings)


def parse(body: bytes) -> Event:
    """Read a callback's body. Unknown fields are passed over, unknown event types are returned with their ids."""
    outer = _load_body(body)
    if not isinstance(outer, dict):
        raise EventError(Reason.NOT_AN_OBJECT, "the body is not a JSON object")
    event_type = _text(outer, "event_type", LONGEST_NAME)
    if event_type is None:
        raise EventError(Reason.MISSING_FIELD, "event_type is missing")
    message = outer.get("message")
    if isinstance(message, str):
        message = _load_message(message)
    if not isinstance(message, dict):
        raise EventError(Reason.INVALID_MESSAGE, "message is neither a JSON object nor a string that holds one")
    names = _FIELDS.get(event_type)
    if names is None:
        room_id, job_id = (_text_or_none(message, name, LONGEST_NAME) for name in _IDS)
        return Event(event_type, room_id, job_id)
    fields = {name: _field(message, name) for name in names}
    for name in _REQUIRED:
        if name in names and fields[name] is None:
            raise EventError(Reason.MISSING_FIELD, f"{name} is missing")
    if event_type == EventType.SHOOT_SCRIPT_SWITCH:
        fields |= _product(message)
    return Event(event_type, **fields)


def _load_body(body: bytes) -> Any:  # noqa: ANN401 (JSON is any value)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise EventError(Reason.NOT_UTF8, f"the body is not UTF-8 from byte {error.start} on") from None
    try:
        return _load_json(text, "the body")
    except EventError as error:
        repaired = _UNESCAPED_END.sub(r'\\"\1', text)
        if error.reason is not Reason.NOT_JSON or repaired == text:
            raise
    return _load_json(repaired, "the body")


def _load_message(message: str) -> Any:  # noqa: ANN401
    try:
        return _load_json(message, "message")
    except EventError as error:
        if error.reason is Reason.NOT_JSON:
            raise EventError(Reason.INVALID_MESSAGE, error.detail) from None
        raise


def _load_json(text: str, what: str) -> Any:  # noqa: ANN401
    """Exactly RFC 8259, with names for what is refused. `what` names the text in errors."""
    try:
        return _DECODER.decode(text)
    except _RefusedError as error:
        raise EventError(error.reason, f"{what} {error}") from None
    except json.JSONDecodeError as error:
        raise EventError(Reason.NOT_JSON, f"{what} is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise EventError(Reason.TOO_DEEP, f"{what} is nested too deeply") from None
    except ValueError:  # an integer of more digits than Python converts
        raise EventError(Reason.NUMBER_TOO_LONG, f"{what} holds a number of thousands of digits") from None


class _RefusedError(Exception):
    """What the standard library's decoder would let through."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RefusedError(Reason.REPEATED_KEY, "holds a key twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise _RefusedError(Reason.NOT_JSON, f"is not JSON: {constant}")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def _field(message: dict[str, Any], name: str) -> Any:  # noqa: ANN401 (an Event's field)
    if name == "shoot_script_sequence_no":
        return _integer(message, name)
    return _text(message, name, LONGEST_NAME if name in _NAMES else None)


def _text(fields: dict[str, Any], name: str, longest: int | None) -> str | None:
    """A field's text. Numbers count as text, as they come either way; nothing and the empty string are None."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise EventError(Reason.INVALID_FIELD, f"{name} is not a string")
    if longest is not None and len(value) > longest:
        raise EventError(Reason.INVALID_FIELD, f"{name} has {len(value)} characters; {longest} is the most")
    if "\0" in value or not _is_unicode(value):
        raise EventError(Reason.UNSTORABLE_TEXT, f"{name} holds a NUL or half a surrogate pair")
    return value


def _text_or_none(fields: dict[str, Any], name: str, longest: int | None) -> str | None:
    """A text that is not documented for this place: there, nothing about it is wrong."""
    try:
        return _text(fields, name, longest)
    except EventError:
        return None


def _text_or_float(fields: dict[str, Any], name: str, longest: int | None) -> str | None:
    value = fields[name]
    return str(value) if isinstance(value, float) else _text_or_none(fields, name, longest)


def _product(message: dict[str, Any]) -> dict[str, str]:
    """The product's fields, in either spelling, at the top of the message or one object deep."""
    places = [message, *(value for value in message.values() if isinstance(value, dict))]
    places = [place for place in places if not _PRODUCT_SPELLINGS.isdisjoint(place)]
    if not places:  # as in most rooms: this is done for each event
        return {}
    found = {}
    for name, spellings in _PRODUCT.items():
        longest = LONGEST_NAME if name in _NAMES else None
        values = ((place, spelling) for place in places for spelling in spellings if spelling in place)
        texts = (_text_or_float(place, spelling, longest) for place, spelling in values)
        text = next((text for text in texts if text is not None), None)
        if text is not None:
            found[name] = text
    return found


def _integer(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -_INTEGERS <= value < _INTEGERS:
        raise EventError(Reason.INVALID_FIELD, f"{name} is not a whole number of 64 bits")
    return value


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
