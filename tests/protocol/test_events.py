from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.protocol.events import Event, EventError, EventType, Reason, StreamState, parse

ROOM = "26f065244f754b3aa853b649a21aaf66"
JOB = "e87104f76d7546ce8a46ac6b04c49c3c"
SCRIPT = Event(
    "SHOOT_SCRIPT_SWITCH",
    room_id=ROOM,
    job_id=JOB,
    scene_script_name="Product 1",
    shoot_script_sequence_no=2,
    shoot_script_title="Paragraph 2",
)
STREAM = Event(
    "RTMP_STREAM_STATE_CHANGE",
    room_id=ROOM,
    job_id=JOB,
    output_url="rtmp://xxx/xx/xx",
    stream_key="xxxxx",
    state="CONNECTED",
)
REPLY = Event("REPLY_COMMAND_FINISH", room_id=ROOM, job_id=JOB, reply_id=JOB)

# As published, to the byte.
PUBLISHED_SCRIPT = (
    rb'{"event_type":  "SHOOT_SCRIPT_SWITCH", "message":"{\"room_id\":\"26f065244f754b3aa853b649a21aaf66\",'
    rb"\"job_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\",\"scene_script_name\":\"Product 1\","
    rb'\"shoot_script_sequence_no\":\"2\",\"shoot_script_title\":\"Paragraph 2\"}"}'
)
PUBLISHED_STREAM = (
    rb'{"event_type":  "RTMP_STREAM_STATE_CHANGE", "message":"{\"room_id\":\"26f065244f754b3aa853b649a21aaf66\",'
    rb"\"job_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\",\"output_url\":\"rtmp://xxx/xx/xx\","
    rb'\"stream_key\":\"xxxxx\",\"state\":\"CONNECTED\"}"}'
)
PUBLISHED_REPLY = (
    rb'{"event_type":  "REPLY_COMMAND_FINISH", "message":"{\"room_id\":\"26f065244f754b3aa853b649a21aaf66\",'
    rb'\"job_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\",\"reply_id\":\"e87104f76d7546ce8a46ac6b04c49c3c"}"}'
)
# As it was meant.
WELL_FORMED_REPLY = (
    rb'{"event_type":  "REPLY_COMMAND_FINISH", "message":"{\"room_id\":\"26f065244f754b3aa853b649a21aaf66\",'
    rb'\"job_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\",\"reply_id\":\"e87104f76d7546ce8a46ac6b04c49c3c\"}"}'
)
SAMPLES = {
    "script": (PUBLISHED_SCRIPT, SCRIPT),
    "stream": (PUBLISHED_STREAM, STREAM),
    "reply, malformed": (PUBLISHED_REPLY, REPLY),
    "reply, well-formed": (WELL_FORMED_REPLY, REPLY),
}


def body_of(event_type: Any, message: Any) -> bytes:
    """A body whose message is JSON inside JSON."""
    return json.dumps({"event_type": event_type, "message": json.dumps(message)}).encode()


def script(**fields: Any) -> bytes:
    return body_of("SHOOT_SCRIPT_SWITCH", {"job_id": JOB} | fields)


def stream(**fields: Any) -> bytes:
    return body_of("RTMP_STREAM_STATE_CHANGE", {"job_id": JOB, "state": "END"} | fields)


def wrapped(message: str) -> bytes:
    """A body whose message is this text, JSON or not."""
    return json.dumps({"event_type": "SHOOT_SCRIPT_SWITCH", "message": message}).encode()


@pytest.mark.parametrize(("body", "event"), SAMPLES.values(), ids=SAMPLES)
def test_official_samples_are_understood(body: bytes, event: Event) -> None:
    """Each published sample gives its typed event, the malformed third one like its well-formed twin."""
    assert parse(body) == event


def test_the_malformed_sample_is_malformed() -> None:
    """The third sample is no JSON by itself: that it is understood is the repair's doing."""
    with pytest.raises(json.JSONDecodeError):
        json.loads(PUBLISHED_REPLY)


@pytest.mark.parametrize("end", [rb'"}"}', rb'" }" }', b'" }"\n}\r\n'])
def test_an_unescaped_last_quote_is_repaired_in_any_layout(end: bytes) -> None:
    """Blanks around the closing braces do not matter, and other types than the sample's are repaired too."""
    body = rb'{"event_type":"RTMP_STREAM_STATE_CHANGE","message":"{\"job_id\":\"j\",\"state\":\"END' + end

    assert parse(body) == Event("RTMP_STREAM_STATE_CHANGE", job_id="j", state="END")


@pytest.mark.parametrize(
    "body",
    [
        PUBLISHED_REPLY[:-1],
        PUBLISHED_REPLY + b"}",
        PUBLISHED_REPLY.replace(rb"\"job_id\"", rb'\"job_id"'),
        PUBLISHED_REPLY.replace(b'{"event_type"', b'{"event_type'),
    ],
    ids=["cut short", "one brace more", "another quote unescaped", "another quote missing"],
)
def test_nothing_else_is_repaired(body: bytes) -> None:
    """A body that is wrong in any other way than the published one stays wrong."""
    with pytest.raises(EventError) as caught:
        parse(body)

    assert caught.value.reason is Reason.NOT_JSON


@pytest.mark.parametrize("event", [SCRIPT, STREAM, REPLY], ids=lambda event: event.event_type)
def test_message_may_be_an_object(event: Event) -> None:
    """A message that is an object instead of a string says the same."""
    fields = {name: value for name, value in event._asdict().items() if value is not None}
    event_type = fields.pop("event_type")

    assert parse(json.dumps({"message": fields, "event_type": event_type}).encode()) == event


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("2", 2),
        (2, 2),
        ("007", 7),
        ("-1", -1),
        (0, 0),
        (2**63 - 1, 2**63 - 1),
        (str(2**63 - 1), 2**63 - 1),
        ("", None),
        (None, None),
    ],
    ids=repr,
)
def test_the_sequence_number_may_be_text_or_number(value: Any, number: int | None) -> None:
    """The paragraph's number is an integer either way; nothing and the empty text are none."""
    assert parse(script(shoot_script_sequence_no=value)).shoot_script_sequence_no == number


def products(message: dict[str, Any]) -> tuple[str | None, ...]:
    """What a paragraph's event with these fields tells of live, product and its title."""
    event = parse(script(**message))
    return event.live_id, event.product_id, event.product_title


OWN = {"live_id": "live", "product_id": "p1", "product_title": "春季新茶"}
MEITUAN = {"liveId": "live", "goodsId": "p1", "goodsTitle": "春季新茶"}


@pytest.mark.parametrize(
    "message",
    [
        OWN,
        MEITUAN,
        {"relation_product_info": OWN},
        {"relation_product_info": MEITUAN, "an array": [{"live_id": "other"}], "nothing": None},
        {"live_id": "live", "a": {"goodsId": "p1", "product_title": ""}, "b": {"goodsTitle": "春季新茶"}},
        OWN | dict.fromkeys(MEITUAN, "other") | {"deeper": dict.fromkeys(OWN, "other")},
        MEITUAN | {"deeper": dict.fromkeys(OWN, "other")},
        OWN | {"deeper": {"deepest": dict.fromkeys(OWN, "other")}},
    ],
    ids=["own names", "Meituan's", "inside", "Meituan's inside", "in several places", "twice", "above", "two deep"],
)
def test_products_are_found_where_they_are(message: dict[str, Any]) -> None:
    """Either spelling counts, the message before the objects in it, and the vendor's own names before Meituan's."""
    assert products(message) == ("live", "p1", "春季新茶")


def test_products_are_not_looked_for_deeper() -> None:
    """Two objects deep, or in an array, nothing is found."""
    assert products({"a": {"b": OWN}, "c": [OWN]}) == (None, None, None)


ODD: list[Any] = ["", None, True, [], {}, ["p1"], "a\0b", "\ud800", "x" * 256]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((value, str(value)) for value in (42, 2**70, 0, 1.5, "42", "x" * 255)),
        *((bad, None) for bad in ODD),
    ],
    ids=lambda value: ascii(value)[:12],
)
def test_products_never_make_an_event_wrong(value: Any, text: str | None) -> None:
    """Texts and numbers are taken, and whatever else stands there is passed over: the event is an event."""
    assert products({"live_id": value, "product_id": value})[:2] == (text, text)
    # Where one place has nothing that can be taken, the next one may.
    assert products({"product_id": value, "a": {"goodsId": "other"}})[1] == (text or "other")


def test_product_titles_may_be_long() -> None:
    """A title is as long as it is, as all titles are."""
    assert products({"goodsTitle": "茶" * 1000})[2] == "茶" * 1000


def test_products_are_of_paragraphs_alone() -> None:
    """Other events do not tell of products."""
    assert parse(stream(**OWN)) == Event("RTMP_STREAM_STATE_CHANGE", job_id=JOB, state="END")
    assert parse(body_of("NEW", OWN | {"deeper": {"two": OWN}})) == Event("NEW")


def test_ids_may_be_numbers() -> None:
    """A number where text is documented is that number's text."""
    event = parse(stream(room_id=42, job_id=2**70, stream_key=0))

    assert (event.room_id, event.job_id, event.stream_key) == ("42", str(2**70), "0")


def test_unknown_fields_are_passed_over() -> None:
    """Fields that a room adds, in either layer and with anything in them, are neither kept nor fatal."""
    added = {"live_id": "1", "product_id": None, "product_title": "商品", "\0": "\ud800", "deep": [[{"job_id": 1.5}]]}
    message = {"job_id": JOB, "reply_id": "r", "scene_script_name": 7.5, "state": ["not this type's"]} | added
    body = json.dumps({"event_type": "REPLY_COMMAND_FINISH", "message": message, "live_id": "\ud800"}).encode()

    assert parse(body) == Event("REPLY_COMMAND_FINISH", job_id=JOB, reply_id="r")


@pytest.mark.parametrize("state", [*StreamState, "PAUSED", "connected", "连接", "S" * 255])
def test_states_are_kept_as_they_come(state: str) -> None:
    """A state that is not documented is kept like those that are."""
    assert parse(stream(state=state)).state == state


def test_unknown_event_types_are_returned_with_their_ids() -> None:
    """An event of a type that is not known yet is an event, of which only the ids are read."""
    message = {"room_id": ROOM, "job_id": JOB, "reply_id": "r", "state": "END"}

    assert parse(body_of("PRODUCT_SOLD_OUT", message)) == Event("PRODUCT_SOLD_OUT", ROOM, JOB)


@pytest.mark.parametrize("odd", [None, "", 1.5, True, [], {}, "\0", "\ud800", "i" * 256])
def test_odd_ids_of_an_unknown_event_type_are_left_out(odd: Any) -> None:
    """Where the type is not known, nothing about an id is wrong: what is no id is none."""
    assert parse(body_of("NEW", {"room_id": odd, "job_id": JOB})) == Event("NEW", None, JOB)


@pytest.mark.parametrize("fields", [{}, {"room_id": "", "scene_script_name": None, "shoot_script_title": ""}])
def test_optional_fields_may_be_left_out(fields: dict[str, Any]) -> None:
    """Fields left out, null or empty are none; a job's id is enough for a script event."""
    assert parse(script(**fields)) == Event("SHOOT_SCRIPT_SWITCH", job_id=JOB)


def test_long_text_that_is_no_name_is_kept() -> None:
    """Titles and URLs have no length of their own; ids have up to 255 characters."""
    event = parse(script(job_id="号" * 255, shoot_script_title="题" * 10_000))

    assert (event.job_id, event.shoot_script_title) == ("号" * 255, "题" * 10_000)


DEEP = 100_000
DIGITS = "9" * 5000
LONG = "i" * 10_000
REFUSED: dict[str, tuple[bytes, Reason]] = {
    "empty": (b"", Reason.NOT_JSON),
    "blank": (b" \r\n", Reason.NOT_JSON),
    "text": (b"hello", Reason.NOT_JSON),
    "form": (b"event_type=END&message=%7B%7D", Reason.NOT_JSON),
    "two values": (b"{} {}", Reason.NOT_JSON),
    "comma at the end": (b'{"event_type":"X",}', Reason.NOT_JSON),
    "single quotes": (b"{'event_type':'X'}", Reason.NOT_JSON),
    "UTF-16 with BOM": ("{}".encode("utf-16"), Reason.NOT_UTF8),
    "UTF-16": ("{}".encode("utf-16-le"), Reason.NOT_JSON),
    "UTF-32": ("{}".encode("utf-32-be"), Reason.NOT_JSON),
    "BOM": (b"\xef\xbb\xbf" + script(), Reason.NOT_JSON),
    "GBK": ('{"event_type":"商品"}'.encode("gbk"), Reason.NOT_UTF8),
    "UTF-8 cut short": ('{"event_type":"商'.encode()[:-1], Reason.NOT_UTF8),
    "UTF-8 overlong": (b'{"event_type":"\xc0\x80"}', Reason.NOT_UTF8),
    "UTF-8 surrogate": (b'{"event_type":"\xed\xa0\x80"}', Reason.NOT_UTF8),
    "raw NUL": (b'{"event_type":"\0"}', Reason.NOT_JSON),
    "raw NUL in message": (wrapped('{"job_id":"\0"}'), Reason.INVALID_MESSAGE),
    "NUL in the type": (body_of("X\0", {}), Reason.UNSTORABLE_TEXT),
    "NUL in an id": (script(job_id="j\0"), Reason.UNSTORABLE_TEXT),
    "NUL in a title": (script(shoot_script_title="\0"), Reason.UNSTORABLE_TEXT),
    "high surrogate in the type": (body_of("\ud800", {}), Reason.UNSTORABLE_TEXT),
    "low surrogate in a URL": (stream(output_url="rtmp://\udfff"), Reason.UNSTORABLE_TEXT),
    "surrogates the wrong way round": (stream(state="\udc00\ud800"), Reason.UNSTORABLE_TEXT),
    "NaN": (b'{"event_type":"X","message":{"n":NaN}}', Reason.NOT_JSON),
    "Infinity": (b'{"event_type":"X","message":{},"n":Infinity}', Reason.NOT_JSON),
    "NaN in message": (wrapped('{"job_id":NaN}'), Reason.INVALID_MESSAGE),
    "-Infinity in message": (wrapped('{"n":-Infinity}'), Reason.INVALID_MESSAGE),
    "repeated type": (b'{"event_type":"X","event_type":"X","message":{}}', Reason.REPEATED_KEY),
    "repeated message": (b'{"event_type":"X","message":{},"message":{}}', Reason.REPEATED_KEY),
    "repeated by escape": (rb'{"event_type":"X","event\u005ftype":"Y","message":{}}', Reason.REPEATED_KEY),
    "repeated in message": (wrapped('{"job_id":"a","job_id":"b"}'), Reason.REPEATED_KEY),
    "repeated deep in message": (wrapped('{"job_id":"a","x":[{"y":1,"y":1}]}'), Reason.REPEATED_KEY),
    "long number": (f'{{"event_type":"X","message":{{}},"n":{DIGITS}}}'.encode(), Reason.NUMBER_TOO_LONG),
    "long number in message": (wrapped(f'{{"job_id":{DIGITS}}}'), Reason.NUMBER_TOO_LONG),
    "deep list": (b"[" * DEEP, Reason.TOO_DEEP),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, Reason.TOO_DEEP),
    "deep in message": (wrapped("[" * DEEP + "]" * DEEP), Reason.TOO_DEEP),
    "deep objects in message": (wrapped('{"a":' * DEEP), Reason.TOO_DEEP),
    "null": (b"null", Reason.NOT_AN_OBJECT),
    "number": (b"7", Reason.NOT_AN_OBJECT),
    "list": (b"[" + script() + b"]", Reason.NOT_AN_OBJECT),
    "string": (json.dumps(script().decode()).encode(), Reason.NOT_AN_OBJECT),
    "no type": (b'{"message":{}}', Reason.MISSING_FIELD),
    "type null": (body_of(None, {}), Reason.MISSING_FIELD),
    "type empty": (body_of("", {}), Reason.MISSING_FIELD),
    "type a list": (body_of(["X"], {}), Reason.INVALID_FIELD),
    "type a truth value": (body_of(True, {}), Reason.INVALID_FIELD),
    "type too long": (body_of("X" * 256, {}), Reason.INVALID_FIELD),
    "RTC variant": (b'{"message_type":"live_progress_notify","data":{}}', Reason.MISSING_FIELD),
    "no message": (b'{"event_type":"X"}', Reason.INVALID_MESSAGE),
    "message null": (b'{"event_type":"X","message":null}', Reason.INVALID_MESSAGE),
    "message a list": (b'{"event_type":"X","message":[{}]}', Reason.INVALID_MESSAGE),
    "message a number": (b'{"event_type":"X","message":0}', Reason.INVALID_MESSAGE),
    "message empty": (wrapped(""), Reason.INVALID_MESSAGE),
    "message of text": (wrapped("hello"), Reason.INVALID_MESSAGE),
    "message of null": (wrapped("null"), Reason.INVALID_MESSAGE),
    "message of a list": (wrapped("[{}]"), Reason.INVALID_MESSAGE),
    "message cut short": (wrapped('{"job_id":"j"'), Reason.INVALID_MESSAGE),
    "message wrapped twice": (wrapped(json.dumps(json.dumps({"job_id": JOB}))), Reason.INVALID_MESSAGE),
    "message with a BOM": (wrapped('\ufeff{"job_id":"j"}'), Reason.INVALID_MESSAGE),
    "no job": (body_of("REPLY_COMMAND_FINISH", {"reply_id": "r"}), Reason.MISSING_FIELD),
    "job null": (script(job_id=None), Reason.MISSING_FIELD),
    "job empty": (stream(job_id=""), Reason.MISSING_FIELD),
    "no state": (stream(state=None), Reason.MISSING_FIELD),
    "job a fraction": (script(job_id=1.5), Reason.INVALID_FIELD),
    "job an object": (script(job_id={"id": JOB}), Reason.INVALID_FIELD),
    "job a truth value": (script(job_id=False), Reason.INVALID_FIELD),
    "title a list": (script(shoot_script_title=["t"]), Reason.INVALID_FIELD),
    "job of 256": (script(job_id="i" * 256), Reason.INVALID_FIELD),
    "job of 10,000": (script(job_id=LONG), Reason.INVALID_FIELD),
    "job a number of 1,000 digits": (wrapped('{"job_id":' + "9" * 1000 + "}"), Reason.INVALID_FIELD),
    "room of 10,000": (script(room_id=LONG), Reason.INVALID_FIELD),
    "state of 10,000": (stream(state=LONG), Reason.INVALID_FIELD),
    "reply of 10,000": (body_of("REPLY_COMMAND_FINISH", {"job_id": JOB, "reply_id": LONG}), Reason.INVALID_FIELD),
    "sequence beyond 64 bits": (script(shoot_script_sequence_no=2**63), Reason.INVALID_FIELD),
    "sequence below 64 bits": (script(shoot_script_sequence_no=-(2**63) - 1), Reason.INVALID_FIELD),
    "sequence text beyond 64 bits": (script(shoot_script_sequence_no=str(2**63)), Reason.INVALID_FIELD),
    "sequence text of 5,000 digits": (script(shoot_script_sequence_no=DIGITS), Reason.INVALID_FIELD),
    "sequence a fraction": (script(shoot_script_sequence_no=2.0), Reason.INVALID_FIELD),
    "sequence a truth value": (script(shoot_script_sequence_no=True), Reason.INVALID_FIELD),
    "sequence a list": (script(shoot_script_sequence_no=[2]), Reason.INVALID_FIELD),
    "sequence a word": (script(shoot_script_sequence_no="two"), Reason.INVALID_FIELD),
    "sequence with a blank": (script(shoot_script_sequence_no=" 2"), Reason.INVALID_FIELD),
    "sequence before a line end": (script(shoot_script_sequence_no="2\n"), Reason.INVALID_FIELD),
    "sequence with a plus": (script(shoot_script_sequence_no="+2"), Reason.INVALID_FIELD),
    "sequence with an underscore": (script(shoot_script_sequence_no="1_0"), Reason.INVALID_FIELD),
    "sequence in other digits": (script(shoot_script_sequence_no="二"), Reason.INVALID_FIELD),
    "sequence in Arabic digits": (script(shoot_script_sequence_no="٢"), Reason.INVALID_FIELD),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_bad_bodies_have_a_stable_reason(body: bytes, reason: Reason) -> None:
    """Whatever a body is not has one name, and a detail of one line for people."""
    with pytest.raises(EventError) as caught:
        parse(body)

    assert caught.value.reason is reason
    assert str(caught.value) == f"{reason}: {caught.value.detail}"
    assert len(caught.value.detail) < 200
    assert len(caught.value.detail.splitlines()) == 1


def test_every_reason_has_a_body() -> None:
    """No reason exists that no body has, and their names, which stand in databases, stay."""
    assert {reason for _, reason in REFUSED.values()} == set(Reason)
    assert [*Reason] == [
        "not_utf8",
        "not_json",
        "too_deep",
        "repeated_key",
        "number_too_long",
        "not_an_object",
        "invalid_message",
        "missing_field",
        "invalid_field",
        "unstorable_text",
    ]


def test_errors_do_not_show_the_streams_key() -> None:
    """The detail of an error names the field at fault and holds nothing of its value."""
    for value in ("s3cr3t\0", ["s3cr3t"], "s3cr3t\ud800"):
        with pytest.raises(EventError, match="stream_key") as caught:
            parse(stream(stream_key=value))
        assert "s3cr3t" not in f"{caught.value!r}"


_NAMES = [name for name in SCRIPT._asdict() if name != "event_type"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(), inner, max_size=3),
    max_leaves=8,
)
_MESSAGES = st.dictionaries(st.sampled_from(_NAMES), st.text(st.characters(), max_size=5) | _JSON)
_BODIES = st.one_of(
    _JSON,
    st.fixed_dictionaries(
        {
            "event_type": st.sampled_from(EventType) | st.text(st.characters(), max_size=5) | _JSON,
            "message": st.one_of(_MESSAGES, _MESSAGES.map(json.dumps), _JSON, _JSON.map(json.dumps)),
        }
    ),
).map(lambda value: json.dumps(value).encode())
_SAMPLE_BYTES = st.sampled_from([body for body, _ in SAMPLES.values()])


def is_storable(event: Event) -> bool:
    """Whether every database takes it: text in UTF-8 without NUL, names within their length, numbers of 64 bits."""
    text = [value for value in event._asdict().values() if isinstance(value, str)]
    ids = [event.room_id, event.job_id, event.reply_id, event.live_id, event.product_id]
    names = [event.event_type, event.state, *ids]
    return (
        all(value and "\0" not in value and value.encode() for value in text)
        and all(len(name or "") <= 255 for name in names)
        and abs(event.shoot_script_sequence_no or 0) < 2**63
    )


@settings(deadline=None, max_examples=400)
@given(_BODIES | st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_body_is_an_event_or_an_event_error(body: bytes) -> None:
    """Any bytes, and any JSON in either layer, give an event that can be stored or raise an EventError."""
    try:
        event = parse(body)
    except EventError:
        return
    assert is_storable(event)


@settings(deadline=None, max_examples=200)
@given(body=_SAMPLE_BYTES, position=st.integers(0, 300), byte=st.integers(0, 255))
def test_any_changed_byte_of_a_sample_is_an_event_or_an_event_error(body: bytes, position: int, byte: int) -> None:
    """A sample with one byte changed is another event or an EventError, whichever byte it is."""
    position %= len(body)
    try:
        event = parse(body[:position] + bytes([byte]) + body[position + 1 :])
    except EventError:
        return
    assert is_storable(event)


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
_CHINESE = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=1, max_size=255)
_TEXTS = _TEXT | _CHINESE
_MAYBE = st.none() | _TEXTS


def typed(event_type: str, **fields: Any) -> Event:
    """An event of these fields; Hypothesis would make up a tuple's others too."""
    return Event(event_type, **fields)


_TYPED = st.one_of(
    st.builds(
        typed,
        st.just("SHOOT_SCRIPT_SWITCH"),
        room_id=_MAYBE,
        job_id=_TEXTS,
        scene_script_name=_MAYBE,
        shoot_script_sequence_no=st.none() | st.integers(1 - 2**63, 2**63 - 1),
        shoot_script_title=_MAYBE,
        live_id=_MAYBE,
        product_id=_MAYBE,
        product_title=_MAYBE,
    ),
    st.builds(
        typed,
        st.just("RTMP_STREAM_STATE_CHANGE"),
        room_id=_MAYBE,
        job_id=_TEXTS,
        output_url=_MAYBE,
        stream_key=_MAYBE,
        state=st.sampled_from(StreamState).map(str) | _TEXTS,
    ),
    st.builds(typed, st.just("REPLY_COMMAND_FINISH"), room_id=_MAYBE, job_id=_TEXTS, reply_id=_MAYBE),
    st.builds(typed, _TEXTS.filter(lambda name: name not in list(EventType)), room_id=_MAYBE, job_id=_MAYBE),
)


@settings(deadline=None, max_examples=200)
@given(event=_TYPED, as_object=st.booleans(), ascii_only=st.booleans(), as_text=st.booleans(), nulls=st.booleans())
def test_a_body_gives_back_the_fields_it_was_built_from(
    *, event: Event, as_object: bool, ascii_only: bool, as_text: bool, nulls: bool
) -> None:
    """Fields go in and come out the same: any language, escaped or not, message as object or text."""
    fields = {name: value for name, value in event._asdict().items() if nulls or value is not None}
    event_type = fields.pop("event_type")
    number = fields.get("shoot_script_sequence_no")
    if as_text and number is not None:
        fields["shoot_script_sequence_no"] = str(number)
    message = fields if as_object else json.dumps(fields, ensure_ascii=ascii_only)
    body = json.dumps({"event_type": event_type, "message": message}, ensure_ascii=ascii_only).encode()

    assert parse(body) == event


@pytest.mark.parametrize("event", [SCRIPT, STREAM, REPLY], ids=lambda event: event.event_type)
def test_chinese_text_is_kept(event: Event) -> None:
    """Chinese text is the same text, as UTF-8 or as escapes."""
    expected = event._replace(room_id="直播间1", job_id="段落2")
    fields = {name: value for name, value in expected._asdict().items() if value is not None}
    event_type = fields.pop("event_type")
    for ascii_only in (True, False):
        inner = json.dumps(fields, ensure_ascii=ascii_only)
        body = json.dumps({"event_type": event_type, "message": inner}, ensure_ascii=ascii_only).encode()
        assert parse(body) == expected
