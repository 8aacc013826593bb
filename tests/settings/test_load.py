from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from receiver.protocol.signature import AuthType
from receiver.settings.declaration import shown
from receiver.settings.load import SettingsError, load
from receiver.settings.settings import EndpointSettings, Settings
from tests.helpers.configuration import ENDPOINTS, KEY, PREVIOUS_KEY, SECRET, make, refused, toml, variable, write

URL = "live_event_type_callback_url"
TOO_LONG = SECRET.ljust(33, "x")


def value_of(settings: Settings, setting: str) -> Any:
    return getattr(settings if hasattr(settings, setting) else settings.endpoints[0], setting)


def test_only_a_key_has_to_be_set() -> None:
    """Everything but the key has a default."""
    assert load(None, {"RECEIVER_KEY": KEY}) == Settings(
        endpoints=(
            EndpointSettings(
                name="default",
                live_event_type_callback_url="https://localhost:8443/callbacks/metastudio",
                auth_type=AuthType.MSS_A,
                key=KEY,
                previous_key="",
                signature_form="auto",
                timestamp_tolerance=300,
            ),
        ),
        listen=("0.0.0.0", 8443),
        tls_certificate=None,
        tls_key=None,
        operations_listen=("127.0.0.1", 9464),
        journal=Path("var/journal.db"),
        journal_max_bytes=1024**3,
        database_url="sqlite:///var/receiver.db",
        max_body_bytes=1024**2,
        max_connections=1024,
        max_connections_per_address=256,
        request_timeout=30,
        trusted_proxies=(),
    )


# Setting: in the file, as read, in the environment, as read.
EVERY_SETTING: dict[str, tuple[Any, Any, str, Any]] = {
    "live_event_type_callback_url": ("https://a.example.com/c?x=1", ..., "https://b.example.com:9/商品", ...),
    "auth_type": ("MSS_A_HEAD", AuthType.MSS_A_HEAD, "MSS_A", AuthType.MSS_A),
    "key": ("a" * 32, ..., "密钥", ...),
    "previous_key": ("the key before", ..., "x y", ...),
    "signature_form": ("host-sorted-hex", ..., "scheme-registered-decimal", ...),
    "timestamp_tolerance": (60, ..., "86400", 86400),
    "listen": ("127.0.0.1:443", ("127.0.0.1", 443), "[::]:8443", ("::", 8443)),
    "tls_certificate": ("a.crt", Path("a.crt"), "/etc/b.crt", Path("/etc/b.crt")),
    "tls_key": ("a.key", Path("a.key"), "/etc/b.key", Path("/etc/b.key")),
    "operations_listen": (":9000", ("0.0.0.0", 9000), "metrics.internal:0", ("metrics.internal", 0)),
    "journal": ("a.db", Path("a.db"), "/var/b.db", Path("/var/b.db")),
    "journal_max_bytes": (2**20, ..., "10000000000", 10**10),
    "database_url": ("sqlite:///database.db", ..., "postgresql+psycopg://u:p@h:5432/d?sslmode=require", ...),
    "max_body_bytes": (1, ..., "4096", 4096),
    "max_connections": (100, ..., "10000", 10000),
    "max_connections_per_address": (1, ..., "64", 64),
    "request_timeout": (5, ..., "60", 60),
    "trusted_proxies": (
        ["127.0.0.1", "10.0.0.0/8"],
        (ip_network("127.0.0.1/32"), ip_network("10.0.0.0/8")),
        "::1, fd00::/8",
        (ip_network("::1/128"), ip_network("fd00::/8")),
    ),
}
IN_FILE = {name: row[0] for name, row in EVERY_SETTING.items()}
IN_ENVIRONMENT = {variable(name): row[2] for name, row in EVERY_SETTING.items()}
FROM_FILE = {name: row[0] if row[1] is ... else row[1] for name, row in EVERY_SETTING.items()}
FROM_ENVIRONMENT = {name: row[2] if row[3] is ... else row[3] for name, row in EVERY_SETTING.items()}


def effective(settings: Settings) -> dict[str, Any]:
    return {name: value_of(settings, name) for name in EVERY_SETTING}


def test_every_setting_can_stand_in_the_file() -> None:
    """Each setting is read from the file under its name."""
    assert effective(load(write(toml(IN_FILE)), {})) == FROM_FILE


def test_every_setting_can_stand_in_the_environment() -> None:
    """Each setting is read from its variable, numbers as text."""
    assert effective(load(None, IN_ENVIRONMENT)) == FROM_ENVIRONMENT


@pytest.mark.parametrize("setting", EVERY_SETTING)
def test_the_environment_wins(setting: str) -> None:
    """A variable replaces its own setting of the file, and no other."""
    settings = load(write(toml(IN_FILE)), {variable(setting): IN_ENVIRONMENT[variable(setting)]})

    assert effective(settings) == FROM_FILE | {setting: FROM_ENVIRONMENT[setting]}


@pytest.mark.parametrize("setting", EVERY_SETTING)
def test_an_empty_variable_is_none(setting: str) -> None:
    """A variable that is set to nothing leaves the file's value in force."""
    assert effective(load(write(toml(IN_FILE)), {variable(setting): ""})) == FROM_FILE


def test_which_file_is_read() -> None:
    """The file is the one given, else RECEIVER_CONFIG's, else receiver.toml here, else none."""
    given, named = write('key = "given"'), write('key = "named"', "named.toml")
    environ = {"RECEIVER_CONFIG": str(named)}

    assert load(given, environ).endpoints[0].key == "given"
    assert load(None, environ).endpoints[0].key == "named"
    assert load(None, {"RECEIVER_CONFIG": "", "RECEIVER_KEY": "variable"}).endpoints[0].key == "variable"
    write('key = "here"', "receiver.toml")
    assert load(None, environ).endpoints[0].key == "named"
    assert load(None, {}).endpoints[0].key == "here"


@pytest.mark.parametrize("content", [KEY, f"{KEY}\n", f"{KEY}\r\n"])
def test_a_key_file_holds_the_key_alone(content: str) -> None:
    """The key is what stands in key_file, without the line end that editors add."""
    Path("key").write_text(content, encoding="utf-8", newline="")

    assert load(None, {"RECEIVER_KEY_FILE": "key"}).endpoints[0].key == KEY


def test_a_variable_for_the_key_replaces_the_files_key_file_and_the_reverse() -> None:
    """Of key and key_file, the one in the environment counts, whichever stands in the file."""
    Path("key").write_text("from the key file", encoding="utf-8")

    assert load(write('key_file = "key"'), {"RECEIVER_KEY": KEY}).endpoints[0].key == KEY
    assert load(write('key = "x"'), {"RECEIVER_KEY_FILE": "key"}).endpoints[0].key == "from the key file"


def test_the_databases_url_in_a_file() -> None:
    """It is what stands in database_url_file, masked like any other; the environment wins, and one alone may be set."""
    url = "postgresql+psycopg://me:the-password@db/receiver"
    Path("url").write_text(f"{url}\n", encoding="utf-8")
    Path("other").write_text("the-password", encoding="utf-8")
    settings = load(write(toml({"key": KEY, "database_url_file": "url"})), {})
    assert (settings.database_url, "the-password" in f"{settings!r} {shown(settings)}") == (url, False)
    assert load(write(toml({"key": KEY, "database_url": "sqlite:///a.db"})), {"RECEIVER_DATABASE_URL_FILE": "url"}) == (
        load(write(toml({"key": KEY})), {"RECEIVER_DATABASE_URL": url})
    )
    for wrong in ({"database_url": url, "database_url_file": "url"}, {"database_url_file": "other"}):
        with pytest.raises(SettingsError, match="database_url") as caught:
            load(write(toml({"key": KEY} | wrong)), {})
        assert "the-password" not in str(caught.value)
    with pytest.raises(SettingsError, match="database_url_file: No such file or directory: name a file"):
        load(None, {"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL_FILE": "the-password"})


def test_several_endpoints() -> None:
    """Each table [[endpoints]] is a registration of its own; the environment still sets what is the process's."""
    Path("key").write_text("in a file", encoding="utf-8")

    settings = load(write(ENDPOINTS), {"RECEIVER_OPERATIONS_LISTEN": "127.0.0.1:2"})

    spring, autumn, winter = settings.endpoints
    assert spring == EndpointSettings("spring", "https://h/spring", key=KEY, previous_key=PREVIOUS_KEY)
    assert spring.keys == (KEY, PREVIOUS_KEY)
    assert autumn == EndpointSettings(
        "Autumn_2-b",
        "https://other:8443/autumn?room=1",
        AuthType.MSS_A_HEAD,
        key="in a file",
        signature_form="host-sorted-hex",
        timestamp_tolerance=60,
    )
    assert autumn.keys == ("in a file",)
    assert winter == EndpointSettings("winter", f"https://h/{SECRET}0123456789", AuthType.NONE)
    assert winter.keys == ()
    assert (settings.listen, settings.operations_listen) == (("127.0.0.1", 1), ("127.0.0.1", 2))


@pytest.mark.parametrize(
    "url", ["https://h/0123456789abcdef", "https://h/a/0123456789abcdef/b", "https://h/c?a=1&t=0123456789abcdef"]
)
def test_none_needs_no_key_but_a_secret_in_the_url(url: str) -> None:
    """With auth_type NONE, 16 characters in one part of the path or one parameter are the secret."""
    (endpoint,) = load(None, {"RECEIVER_AUTH_TYPE": "NONE", "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": url}).endpoints

    assert (endpoint.auth_type, endpoint.keys) == (AuthType.NONE, ())


def test_none_does_not_read_keys() -> None:
    """With auth_type NONE nothing is signed: keys that are set all the same are neither checked nor kept."""
    environ = {"RECEIVER_AUTH_TYPE": "NONE", variable(URL): "https://h/0123456789abcdef"}
    (endpoint,) = load(None, environ | {"RECEIVER_KEY_FILE": "nowhere", "RECEIVER_PREVIOUS_KEY": TOO_LONG}).endpoints

    assert endpoint.keys == ()


def test_an_empty_previous_key_is_none() -> None:
    """The file may hold an empty previous_key, for a template that is filled in while the key is changed."""
    assert load(write(toml({"key": KEY, "previous_key": ""})), {}).endpoints[0].keys == (KEY,)


def test_a_key_has_to_be_set() -> None:
    """Without a key nothing starts, and the message says where one comes from."""
    with pytest.raises(SettingsError) as caught:
        load(None, {})

    refused(str(caught.value), "key", "receiver init")


@pytest.mark.parametrize(("one", "other"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")])
def test_certificate_and_its_key_go_together(one: str, other: str) -> None:
    """One of the two alone would serve plain HTTP where TLS was meant: the message names the missing one."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": KEY, variable(one): "file"})

    refused(str(caught.value), other, "set both")


@pytest.mark.parametrize(
    "url",
    [
        "https://h/c",
        "https://h",
        "https://h/012345678901234",
        "https://h/01234567/01234567?a=012345678901234&b=1",
        "https://hooks-0123456789abcdef.example.com/c",
        "https://h/c?0123456789abcdef=1",
    ],
)
def test_none_without_a_secret_in_the_url_is_refused(url: str) -> None:
    """With auth_type NONE and no 16 characters in one place, anybody could post."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_AUTH_TYPE": "NONE", variable(URL): url})

    refused(str(caught.value), URL, "16 or more random characters")


@pytest.mark.parametrize(
    "environ",
    [{"RECEIVER_KEY": KEY, "RECEIVER_KEY_FILE": "key"}, {"RECEIVER_CONFIG": "settings.toml"}],
    ids=["environment", "file"],
)
def test_key_and_key_file_exclude_each_other(environ: dict[str, str]) -> None:
    """With both in one place it would be a guess which one counts."""
    write(toml({"key": KEY, "key_file": "key"}))

    with pytest.raises(SettingsError) as caught:
        load(None, environ)

    refused(str(caught.value), "key", "only one")


FILES: dict[str, tuple[Any, str]] = {
    "missing": (None, "receiver init"),
    "a folder": (..., "receiver init"),
    "not TOML": (f'key = "{SECRET}'.encode(), "is not TOML"),
    "a key without quotes": (f"key = {SECRET}".encode(), "is not TOML"),
    "a setting twice": (f'key = "{SECRET}"\nkey = "{SECRET}"'.encode(), "is not TOML"),
    "YAML": (f"key: {SECRET}".encode(), "is not TOML"),
    "not UTF-8": (f'key = "{SECRET}'.encode() + b'\xff"', "is not TOML"),
    "UTF-16": (f'key = "{SECRET}"'.encode("utf-16"), "is not TOML"),
    "a number of 5,000 digits": (b"max_body_bytes = " + b"9" * 5000, ""),
    "nested deeply": (b"key = " + b"[" * 100_000, ""),
}


def test_own_file_that_cannot_be_read() -> None:
    """A receiver.toml in this folder that is there, and cannot be read, is not passed over."""
    Path("receiver.toml").symlink_to("receiver.toml")
    with pytest.raises(SettingsError, match="Too many levels of symbolic links"):
        load(None, {"RECEIVER_KEY": KEY})


@pytest.mark.parametrize(("content", "remedy"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_refused(content: Any, remedy: str) -> None:
    """The file is named where it is missing or no TOML, and its content is not shown."""
    path = Path("settings.toml")
    make(path, content)

    with pytest.raises(SettingsError) as caught:
        load(path, {})

    refused(str(caught.value), "settings.toml", remedy)


def table(**settings: Any) -> str:
    return "[[endpoints]]\n" + toml({"key": KEY} | settings)


A = table(name="a", live_event_type_callback_url="https://h/a")
ENDPOINTS_REFUSED: dict[str, tuple[str, str, str]] = {
    "one table": (f"[endpoints]\n{toml({'key': KEY})}", "endpoints", "[[endpoints]]"),
    "an empty list": ("endpoints = []", "endpoints", "[[endpoints]]"),
    "a list of names": ('endpoints = ["a"]', "endpoints", "[[endpoints]]"),
    "without a name": (A + table(), "endpoints[2].name", "give it a name"),
    "with an empty name": (table(name=""), "endpoints[1].name", "give it a name"),
    "with a blank in the name": (table(name="a b"), "endpoints[1].name", "give it a name"),
    "with a long name": (table(name="a" * 65), "endpoints[1].name", "give it a name"),
    "with a number for a name": (table(name=1), "endpoints[1].name", "give it a name"),
    "with a name that is taken": (A + table(name="a"), "endpoints[2].name", "a name of its own"),
    "without a key": (A + '[[endpoints]]\nname = "b"', "endpoints[2].key", "receiver init"),
    "with a blank key": (A + table(name="b", key=" "), "endpoints[2].key", "set it"),
    "with a key too long": (A + table(name="b", previous_key=TOO_LONG), "endpoints[2].previous_key", "at most 32"),
    "with a wrong URL": (table(name="b", live_event_type_callback_url="h"), f"endpoints[1].{URL}", "https://"),
    "with NONE and no secret": (table(name="b", auth_type="NONE"), f"endpoints[1].{URL}", "16 or more"),
    "with a setting of the process": (table(name="b", listen=":1"), "listen", "remove it"),
    "with a setting misspelt": (table(name="b", auth_typ="NONE"), "auth_typ", "did you mean `auth_type`?"),
    "on one path": (
        A + table(name="b", live_event_type_callback_url="https://other/a?x=1"),
        f"endpoints[2].{URL}",
        "the path of endpoint a",
    ),
    "on one path, encoded": (
        A + table(name="b", live_event_type_callback_url="https://h/%61"),
        f"endpoints[2].{URL}",
        "the path of endpoint a",
    ),
    "on one root": (
        table(name="a", live_event_type_callback_url="https://h")
        + table(name="b", live_event_type_callback_url="https://h/"),
        f"endpoints[2].{URL}",
        "the path of endpoint a",
    ),
    "beside a single one": (f"auth_type = 'MSS_A'\n{A}", "auth_type", "move it into one of them"),
}


@pytest.mark.parametrize(("text", "setting", "remedy"), ENDPOINTS_REFUSED.values(), ids=ENDPOINTS_REFUSED)
def test_wrong_endpoints_are_refused(text: str, setting: str, remedy: str) -> None:
    """A wrong endpoint is named by its number and setting."""
    with pytest.raises(SettingsError) as caught:
        load(write(text), {})

    refused(str(caught.value), setting, remedy)


def test_a_variable_for_one_of_several_endpoints_is_refused() -> None:
    """A variable of an endpoint's setting could mean any of them: the message names the variable."""
    with pytest.raises(SettingsError) as caught:
        load(write(A), {"RECEIVER_KEY": KEY})

    refused(str(caught.value), "RECEIVER_KEY", "move it into one of them")


@pytest.mark.parametrize("journal", ["var/receiver.db", "var/../var/receiver.db"])
def test_journal_and_database_are_two_files(journal: str) -> None:
    """The journal is locked by the receiver, so it cannot be the database's file too, however it is written."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": "k", "RECEIVER_JOURNAL": journal})
    refused(str(caught.value), "journal", "set it to another")
