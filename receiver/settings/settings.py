"""The settings: from a TOML file and from environment variables, which win. Names are the vendor's where it has any.

Everything that is wrong is refused here, in one line that names the setting and the remedy.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import make_url

from receiver.addresses import Network
from receiver.protocol.signature import AUTO, AuthType, Verifier
from receiver.protocol.url import callback_path
from receiver.settings.values import SettingsError, parse

DEFAULT_FILE = "receiver.toml"
DEFAULT_URL = "https://localhost:8443/callbacks/metastudio"
_SHORTEST_URL_SECRET = 16
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

    def verifier(self) -> Verifier:
        """The check of this endpoint's signatures."""
        return Verifier(
            self.live_event_type_callback_url,
            self.auth_type,
            self.keys,
            form=self.signature_form,
            tolerance=self.timestamp_tolerance,
        )

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
    process = {name: parse(name, values[name]) for name in _PROCESS_SETTINGS if name in values}
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
    paths: dict[bytes, str] = {}
    for number, table in enumerate(tables, 1):
        _refuse_unknown(table, ("name", *_ENDPOINT_SETTINGS))
        name = table.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SettingsError(f"endpoints[{number}].name: is not 1 to 64 letters, digits, - or _: give it a name")
        if name in {endpoint.name for endpoint in found}:
            raise SettingsError(f"endpoints[{number}].name: {name} is taken: give each endpoint a name of its own")
        endpoint = _endpoint(name, f"endpoints[{number}].", {key: table[key] for key in table if key != "name"})
        path = callback_path(endpoint.live_event_type_callback_url)
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
            fields[setting] = parse(setting, values[setting], prefix=prefix)
    endpoint = EndpointSettings(name, **fields)
    _check_url(prefix + "live_event_type_callback_url", endpoint)
    if "key" in values and "key_file" in values:
        raise SettingsError(f"{prefix}key: is set, and so is key_file: set only one of them")
    if endpoint.auth_type is AuthType.NONE:
        return endpoint
    source = next((name for name in ("key_file", "key") if name in values), None)
    if source is None:
        raise SettingsError(
            f"{prefix}key: is not set: set it to the `key` of the registration, or run `receiver init` for a new one"
        )
    key = parse(source, values[source], prefix=prefix)
    previous = parse("previous_key", values["previous_key"], prefix=prefix) if values.get("previous_key") else ""
    return replace(endpoint, key=key, previous_key=previous)


def _check_url(setting: str, endpoint: EndpointSettings) -> None:
    url = endpoint.live_event_type_callback_url
    parts = urlsplit(url)
    secrets = [*parts.path.split("/"), *(pair.partition("=")[2] for pair in parts.query.split("&"))]
    if callback_path(url) == b"/healthz":
        raise SettingsError(f"{setting}: has the path /healthz, which is taken: choose another")
    if endpoint.auth_type is AuthType.NONE and max(map(len, secrets)) < _SHORTEST_URL_SECRET:
        raise SettingsError(
            f"{setting}: holds no secret, and with auth_type NONE the URL is all that tells MetaStudio from others: put"
            f" {_SHORTEST_URL_SECRET} or more random characters into its path or query, or use MSS_A"
        )


def _address_text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _variable(setting: str) -> str:
    return f"RECEIVER_{setting.upper()}"
