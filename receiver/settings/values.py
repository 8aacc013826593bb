"""The value of one setting at a time: what it may be, and what is said of anything else.

Each function here takes the setting's name, for the error, and the value that the file or the environment has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from receiver.addresses import Network
from receiver.protocol.signature import AUTO, FORMS, SECRET_PARAMETER, TIME_PARAMETER, AuthType

_LONGEST_URL = 2048  # what live_event_type_callback_url takes
_LONGEST_KEY = 32  # what key takes
_SMALLEST_JOURNAL = 2**20
_URL_CHARACTERS = re.compile(r"[^\s\x00-\x1f\x7f\"<>\\^`{|}#]+")


class SettingsError(Exception):
    """A setting is wrong. The message names it and the remedy, and holds no secret."""


def parse(name: str, value: object, *, prefix: str = "") -> Any:  # noqa: ANN401 (of the type that the setting has)
    """The value of the setting `name`, which is `prefix` and `name` in errors; raises `SettingsError`."""
    return _PARSERS[name](prefix + name, value)


def _key_file(setting: str, value: object) -> str:
    """The key that is in the file."""
    path = _path(setting, value)
    try:
        key = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        # Without the path, in case somebody set it to the key itself.
        raise SettingsError(f"{setting}: {problem}: name a file that holds the key alone") from error
    return _key(setting, key)


def _key(setting: str, value: object) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{setting}: is not a string: put it in quotes")
    if not _is_unicode(value):
        raise SettingsError(f"{setting}: holds bytes that are not UTF-8: write it again")
    if not value.strip():
        raise SettingsError(f"{setting}: is blank, so anybody could sign: set it to the `key` of the registration")
    if len(value) > _LONGEST_KEY:
        raise SettingsError(f"{setting}: has {len(value)} characters; MetaStudio takes at most {_LONGEST_KEY}")
    if "\0" in value:
        raise SettingsError(f"{setting}: holds a NUL, which an HMAC cannot tell from its absence: remove it")
    if value != value.strip():
        raise SettingsError(f"{setting}: begins or ends with a blank: remove it, there and in the registration")
    return value


def _url(setting: str, value: object) -> str:
    text = _string(setting, value)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        # The error's own text would show the URL, and with it what may be a secret.
        raise SettingsError(f"{setting}: is not a URL: write https://, the host, the path and nothing odd") from error
    if parts.scheme != "https":
        raise SettingsError(f"{setting}: does not begin with https://, and MetaStudio takes nothing else")
    if len(text) > _LONGEST_URL:
        raise SettingsError(f"{setting}: has {len(text)} characters; MetaStudio takes at most {_LONGEST_URL}")
    if not host or port == 0 or "@" in parts.netloc or not _URL_CHARACTERS.fullmatch(text):
        raise SettingsError(
            f"{setting}: is not a URL that can be registered: it needs a host, and takes no user, fragment, blank or"
            " other character that has to be percent-encoded"
        )
    for pair in parts.query.split("&"):
        if unquote(pair.partition("=")[0]).lower() in (SECRET_PARAMETER.lower(), TIME_PARAMETER.lower()):
            raise SettingsError(
                f"{setting}: holds {SECRET_PARAMETER} or {TIME_PARAMETER}, which MetaStudio adds: remove"
            )
    return text


def _auth_type(setting: str, value: object) -> AuthType:
    text = _string(setting, value)
    if text == "MEITUAN_DEFAULT":
        raise SettingsError(f"{setting}: MEITUAN_DEFAULT is Meituan's own scheme, for its API alone: use MSS_A")
    if text not in list(AuthType):
        raise SettingsError(f"{setting}: {text!r} is none of {', '.join(AuthType)}")
    return AuthType(text)


def _form(setting: str, value: object) -> str:
    text = _string(setting, value)
    if text != AUTO and text not in FORMS:
        raise SettingsError(f"{setting}: {text!r} is none of {AUTO}, {', '.join(FORMS)}")
    return text


def _database_url(setting: str, value: object) -> str:
    text = _string(setting, value)
    try:
        drivername = make_url(text).drivername
    except (ArgumentError, ValueError):
        drivername = ""
    if drivername == "postgresql":
        raise SettingsError(f"{setting}: names no driver: begin it with postgresql+psycopg://")
    if drivername not in ("sqlite", "postgresql+psycopg"):
        raise SettingsError(f"{setting}: is neither sqlite:///… nor postgresql+psycopg://…")
    if make_url(text).database in (None, "", ":memory:"):
        raise SettingsError(f"{setting}: names no database: end it with a file (sqlite) or a database's name")
    return text


def _string(setting: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise SettingsError(f"{setting}: is not a text: put it in quotes")
    if "\0" in value or not _is_unicode(value):
        raise SettingsError(f"{setting}: holds a NUL, or bytes that are not UTF-8: write it again")
    return value


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _path(setting: str, value: object) -> Path:
    return Path(_string(setting, value))


def _number(setting: str, value: object, least: int = 1) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{setting}: is not a whole number of {least} or more")
    return value


def _address(setting: str, value: object) -> tuple[str, int]:
    match = re.fullmatch(
        r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})", _string(setting, value)
    )
    if match is None or int(match["port"]) > 65535:  # noqa: PLR2004 (the largest port)
        raise SettingsError(f"{setting}: is not host:port, such as 0.0.0.0:8443 or [::]:8443")
    return match["v6"] or match["host"] or "0.0.0.0", int(match["port"])  # noqa: S104


def _networks(setting: str, value: object) -> tuple[Network, ...]:
    texts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise SettingsError(f'{setting}: is not a list: write it as ["127.0.0.1", "10.0.0.0/8"]')
    found: list[Network] = []
    for text in texts:
        try:
            network = ip_network(_string(setting, text))
        except ValueError as error:
            raise SettingsError(
                f"{setting}: {text!r} is no address, nor a network with all bits after its prefix 0, such as 10.0.0.0/8"
            ) from error
        if network.prefixlen == 0:
            raise SettingsError(
                f"{setting}: {text} is everybody, and anybody could say to be anyone: name your proxies"
            )
        found.append(network)
    return tuple(found)


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "live_event_type_callback_url": _url,
    "auth_type": _auth_type,
    "key": _key,
    "key_file": _key_file,
    "previous_key": _key,
    "signature_form": _form,
    "timestamp_tolerance": _number,
    "listen": _address,
    "tls_certificate": _path,
    "tls_key": _path,
    "operations_listen": _address,
    "journal": _path,
    "journal_max_bytes": partial(_number, least=_SMALLEST_JOURNAL),
    "database_url": _database_url,
    "max_body_bytes": _number,
    "max_connections": _number,
    "max_connections_per_address": _number,
    "request_timeout": _number,
    "trusted_proxies": _networks,
}
