"""The settings: from a TOML file and from environment variables, which win. Names are the vendor's where it has any.

Everything that is wrong is refused here, in one line that names the setting and the remedy.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from receiver.protocol.signature import AUTO, FORMS, SECRET_PARAMETER, TIME_PARAMETER, AuthType

Network = IPv4Network | IPv6Network

DEFAULT_FILE = "receiver.toml"
DEFAULT_URL = "https://localhost:8443/callbacks/metastudio"
LONGEST_URL = 2048  # what live_event_type_callback_url takes
LONGEST_KEY = 32  # what key takes
_SHORTEST_URL_SECRET = 16
_SMALLEST_JOURNAL = 2**20
_ENDPOINT_SETTINGS = (
    "live_event_type_callback_url",
    "auth_type",
    "key",
    "key_file",
    "previous_key",
    "signature_form",
    "timestamp_tolerance",
)
_PROCESS_SETTINGS = (
    "listen",
    "tls_certificate",
    "tls_key",
    "operations_listen",
    "journal",
    "journal_max_bytes",
    "database_url",
    "max_body_bytes",
    "max_connections",
    "max_connections_per_address",
    "request_timeout",
    "trusted_proxies",
)
_URL_CHARACTERS = re.compile(r"[^\s\x00-\x1f\x7f\"<>\\^`{|}#]+")


class SettingsError(Exception):
    """A setting is wrong. The message names it and the remedy, and holds no secret."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """One registration: the vendor's ``live_event_callback_config``, and how to check it."""

    name: str
    live_event_type_callback_url: str = field(default=DEFAULT_URL, repr=False)
    auth_type: AuthType = AuthType.MSS_A
    key: str = field(default="", repr=False)
    previous_key: str = field(default="", repr=False)
    signature_form: str = AUTO
    timestamp_tolerance: float = 300

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys to accept, the current one first."""
        return tuple(key for key in (self.key, self.previous_key) if key)

    @property
    def public_url(self) -> str:
        """The URL without what may be a secret in it: its query and, where it is the only secret, its path."""
        parts = urlsplit(self.live_event_type_callback_url)
        path = "/****" if self.auth_type is AuthType.NONE else parts.path
        return urlunsplit(parts._replace(path=path, query="****" if parts.query else ""))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Addresses are (host, port), sizes are in bytes, times in seconds."""

    endpoints: tuple[EndpointSettings, ...]
    listen: tuple[str, int] = ("0.0.0.0", 8443)  # noqa: S104 (the callbacks come from outside)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    operations_listen: tuple[str, int] = ("127.0.0.1", 9464)
    journal: Path = Path("var/journal.db")
    journal_max_bytes: int = 2**30
    database_url: str = field(default="sqlite:///var/receiver.db", repr=False)
    max_body_bytes: int = 2**20
    max_connections: int = 1024
    max_connections_per_address: int = 256
    request_timeout: int = 30
    trusted_proxies: tuple[Network, ...] = ()


def load(file: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings from `file` (or RECEIVER_CONFIG, or receiver.toml here) and `environ`; raises `SettingsError`."""
    values = _read(file, environ)
    names = (*_ENDPOINT_SETTINGS, *_PROCESS_SETTINGS)
    given = {name: environ[_variable(name)] for name in names if environ.get(_variable(name))}
    if "endpoints" in values:
        single = [name for name in _ENDPOINT_SETTINGS if name in values or name in given]
        if single:
            where = _variable(single[0]) if single[0] in given else single[0]
            raise SettingsError(f"{where}: is for one endpoint, but there are [[endpoints]]: move it into one of them")
    for one, other in (("key", "key_file"), ("key_file", "key")):
        if one in given and other not in given:
            values.pop(other, None)
    values |= given
    process = {name: _PARSERS[name](name, values[name]) for name in _PROCESS_SETTINGS if name in values}
    settings = Settings(endpoints=_endpoints(values), **process)
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        missing, there = ("tls_key", "tls_certificate")[:: 1 if settings.tls_certificate else -1]
        raise SettingsError(f"{missing}: is not set, but {there} is: set both, or none behind a proxy that ends TLS")
    database = make_url(settings.database_url)
    if (
        database.get_backend_name() == "sqlite"
        and Path(database.database or "").resolve() == settings.journal.resolve()
    ):
        raise SettingsError("journal: is the file of database_url: set it to another, which nothing else uses")
    return settings


def masked(settings: Settings) -> dict[str, Any]:
    """The effective settings by name, for people: no secret among them."""
    endpoints = [
        {
            "name": endpoint.name,
            "live_event_type_callback_url": endpoint.public_url,
            "auth_type": str(endpoint.auth_type),
            "key": "****" if endpoint.key else "",
            "previous_key": "****" if endpoint.previous_key else "",
            "signature_form": endpoint.signature_form,
            "timestamp_tolerance": endpoint.timestamp_tolerance,
        }
        for endpoint in settings.endpoints
    ]
    return {
        "listen": _address_text(settings.listen),
        "tls_certificate": str(settings.tls_certificate or ""),
        "tls_key": str(settings.tls_key or ""),
        "operations_listen": _address_text(settings.operations_listen),
        "journal": str(settings.journal),
        "journal_max_bytes": settings.journal_max_bytes,
        "database_url": make_url(settings.database_url).set(query={}).render_as_string(hide_password=True),
        "max_body_bytes": settings.max_body_bytes,
        "max_connections": settings.max_connections,
        "max_connections_per_address": settings.max_connections_per_address,
        "request_timeout": settings.request_timeout,
        "trusted_proxies": [str(network) for network in settings.trusted_proxies],
        "endpoints": endpoints,
    }


def _read(file: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    named = file or (Path(environ["RECEIVER_CONFIG"]) if environ.get("RECEIVER_CONFIG") else None)
    path = named or Path(DEFAULT_FILE)
    if named is None and not path.exists():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: {error.strerror}: name a file that can be read, or run `receiver init`"
        ) from error
    except (ValueError, RecursionError) as error:  # TOML, UTF-8, and numbers or nesting beyond Python
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    _refuse_unknown(values, (*_ENDPOINT_SETTINGS, *_PROCESS_SETTINGS, "endpoints"))
    return values


def _refuse_unknown(values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean `{close[0]}`?" if close else "remove it; the README lists all settings"
            raise SettingsError(f"{name if name.isidentifier() else repr(name)}: is no setting: {remedy}")


def _endpoints(values: Mapping[str, Any]) -> tuple[EndpointSettings, ...]:
    if "endpoints" not in values:
        single = {name: values[name] for name in _ENDPOINT_SETTINGS if name in values}
        return (_endpoint("default", "", single),)
    tables = values["endpoints"]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise SettingsError("endpoints: is not a list of tables: write each as [[endpoints]]")
    found: list[EndpointSettings] = []
    paths: dict[str, str] = {}
    for number, table in enumerate(tables, 1):
        _refuse_unknown(table, ("name", *_ENDPOINT_SETTINGS))
        name = table.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SettingsError(f"endpoints[{number}].name: is not 1 to 64 letters, digits, - or _: give it a name")
        if name in {endpoint.name for endpoint in found}:
            raise SettingsError(f"endpoints[{number}].name: {name} is taken: give each endpoint a name of its own")
        endpoint = _endpoint(name, f"endpoints[{number}].", {key: table[key] for key in table if key != "name"})
        path = unquote(urlsplit(endpoint.live_event_type_callback_url).path) or "/"
        if path in paths:
            raise SettingsError(
                f"endpoints[{number}].live_event_type_callback_url: has the path of endpoint {paths[path]}, and"
                " the path is what tells them apart: give it another"
            )
        paths[path] = name
        found.append(endpoint)
    return tuple(found)


def _endpoint(name: str, prefix: str, values: Mapping[str, Any]) -> EndpointSettings:
    """One endpoint from its own settings; `prefix` tells in errors which one it is."""
    fields: dict[str, Any] = {}
    for setting in ("live_event_type_callback_url", "auth_type", "signature_form", "timestamp_tolerance"):
        if setting in values:
            fields[setting] = _PARSERS[setting](prefix + setting, values[setting])
    endpoint = EndpointSettings(name, **fields)
    _check_url(prefix + "live_event_type_callback_url", endpoint)
    if "key" in values and "key_file" in values:
        raise SettingsError(f"{prefix}key: is set, and so is key_file: set only one of them")
    if endpoint.auth_type is AuthType.NONE:
        return endpoint
    if "key_file" in values:
        key = _key(prefix + "key_file", _read_key(prefix + "key_file", values["key_file"]))
    elif "key" in values:
        key = _key(prefix + "key", values["key"])
    else:
        raise SettingsError(
            f"{prefix}key: is not set: set it to the `key` of the registration, or run `receiver init` for a new one"
        )
    previous = _key(prefix + "previous_key", values["previous_key"]) if values.get("previous_key") else ""
    return replace(endpoint, key=key, previous_key=previous)


def _check_url(setting: str, endpoint: EndpointSettings) -> None:
    url = endpoint.live_event_type_callback_url
    parts = urlsplit(url)
    secrets = [*parts.path.split("/"), *(pair.partition("=")[2] for pair in parts.query.split("&"))]
    if unquote(parts.path) == "/healthz":
        raise SettingsError(f"{setting}: has the path /healthz, which is taken: choose another")
    if endpoint.auth_type is AuthType.NONE and max(map(len, secrets)) < _SHORTEST_URL_SECRET:
        raise SettingsError(
            f"{setting}: holds no secret, and with auth_type NONE the URL is all that tells MetaStudio from others: put"
            f" {_SHORTEST_URL_SECRET} or more random characters into its path or query, or use MSS_A"
        )


def _read_key(setting: str, value: object) -> str:
    path = _path(setting, value)
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        # Without the path, in case somebody set it to the key itself.
        raise SettingsError(f"{setting}: {problem}: name a file that holds the key alone") from error


def _key(setting: str, value: object) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{setting}: is not a string: put it in quotes")
    if not _is_unicode(value):
        raise SettingsError(f"{setting}: holds bytes that are not UTF-8: write it again")
    if not value.strip():
        raise SettingsError(f"{setting}: is blank, so anybody could sign: set it to the `key` of the registration")
    if len(value) > LONGEST_KEY:
        raise SettingsError(f"{setting}: has {len(value)} characters; MetaStudio takes at most {LONGEST_KEY}")
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
    if len(text) > LONGEST_URL:
        raise SettingsError(f"{setting}: has {len(text)} characters; MetaStudio takes at most {LONGEST_URL}")
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


def _address_text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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


def _variable(setting: str) -> str:
    return f"RECEIVER_{setting.upper()}"


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "live_event_type_callback_url": _url,
    "auth_type": _auth_type,
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
