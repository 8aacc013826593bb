"""Loads the settings from a TOML file and from environment variables, which win.

Everything that is wrong is refused here, in one line that names the setting and the remedy.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import make_url

from receiver.protocol.signature import AuthType
from receiver.protocol.url import callback_path
from receiver.rejections import NO_ENDPOINT
from receiver.settings.declaration import PREFIX, Setting, declared, variable
from receiver.settings.parsers import InvalidValueError
from receiver.settings.settings import EndpointSettings, Settings

DEFAULT_FILE = "receiver.toml"
_CONFIG = variable("config")
_SHORTEST_URL_SECRET = 16
_NAME_OF_NO_KEY = re.compile("[a-z_]{0,10}|[A-Z_]{0,10}")
_SHOWN = 2  # characters of another name that is unlike any setting's
_ENDPOINT, _PROCESS = declared(EndpointSettings), declared(Settings)
_ALL = _ENDPOINT | _PROCESS
_VARIABLES = {name: variable(name) for name in _ALL}
# What Kubernetes sets for a Service, and Docker for a linked container, whose name begins with "receiver". No setting
# may have such a name.
_SERVICE_LINK = re.compile(
    r"RECEIVER_(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT=\w+://|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=|NAME=/|ENV_\w+=)"
)


class SettingsError(Exception):
    """A setting is wrong. The message names it and the remedy, and holds no secret."""


def load(file: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings from `file` (or RECEIVER_CONFIG, or receiver.toml here) and `environ`; raises `SettingsError`."""
    values, given = _read_file(file, environ), _read_environment(environ)
    single = next((name for name in _ENDPOINT if name in values or name in given), None)
    if "endpoints" in values and single:
        where = _VARIABLES[single] if single in given else single
        raise SettingsError(f"{where}: is for one endpoint, but there are [[endpoints]]: move it into one of them")
    fields = {_ALL[name].field for name in given}
    values = {name: values[name] for name in values if name not in _ALL or _ALL[name].field not in fields} | given
    settings = Settings(endpoints=_endpoints(values), **_parse_all(_PROCESS, values))
    _check_files(settings)
    return settings


def parse(name: str, value: object, *, prefix: str = "") -> Any:  # noqa: ANN401 (of the type that the setting has)
    """The value of the setting `name`, which is `prefix` and `name` in errors; raises `SettingsError`."""
    try:
        return _ALL[name].parse(value)
    except InvalidValueError as error:
        raise SettingsError(f"{prefix}{name}: {error}") from error


def _parse_all(settings: Mapping[str, Setting], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The dataclass's fields for those of its settings that have a value."""
    found: dict[str, Any] = {}
    for name, one in settings.items():
        if name in values:
            if one.field in found:
                raise SettingsError(f"{prefix}{one.field}: is set, and so is {name}: set only one of them")
            found[one.field] = parse(name, values[name], prefix=prefix)
    return found


def _read_file(file: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    named = file or (Path(environ[_CONFIG]) if environ.get(_CONFIG) else None)
    path = named or Path(DEFAULT_FILE)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError):
            return {}
        shown = _CONFIG if named and not re.search(r"[/.]", str(named)) else path  # it may be a key
        raise SettingsError(
            f"{shown}: {error.strerror}: name a file that can be read, or run `receiver init`"
        ) from error
    except (ValueError, RecursionError) as error:  # TOML, UTF-8, and numbers or nesting beyond Python
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    _refuse_unknown(values, {name: name for name in (*_ALL, "endpoints")})
    return values


def _read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    given = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value}
    others = (name for name, value in given.items() if not _SERVICE_LINK.match(f"{name}={value}"))
    _refuse_unknown(others, _VARIABLES | {"config": _CONFIG})
    return {name: given[_VARIABLES[name]] for name in _ALL if _VARIABLES[name] in given}


def _refuse_unknown(given: Iterable[str], known: Mapping[str, str]) -> None:
    """Refuse a name that is not among the values of `known`. Its keys are what a misspelt name is compared with."""
    for name in given:
        if name not in known.values():
            close = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), known, 1)
            other = "remove it; docs/reference/settings.md lists all settings"
            remedy = f"did you mean `{known[close[0]]}`?" if close else other
            raise SettingsError(f"{_shown(name, is_close=bool(close))}: is no setting: {remedy}")


def _shown(name: str, *, is_close: bool) -> str:
    """A name that is no setting; where it may be a key in the wrong place, no more of it than helps to find it."""
    own = name.removeprefix(PREFIX)
    if is_close or own in _ALL or _NAME_OF_NO_KEY.fullmatch(own):
        return name if name.isidentifier() else repr(name)
    begin = name[: len(name) - len(own) + _SHOWN]
    return f"{begin if begin.isidentifier() else repr(begin)}… ({len(name)} characters)"


def _endpoints(values: Mapping[str, Any]) -> tuple[EndpointSettings, ...]:
    if "endpoints" not in values:
        return (_endpoint("default", "", values),)
    tables = values["endpoints"]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise SettingsError("endpoints: is not a list of tables: write each as [[endpoints]]")
    found: dict[bytes, EndpointSettings] = {}
    for number, table in enumerate(tables, 1):
        prefix = f"endpoints[{number}]."
        _refuse_unknown(table, {name: name for name in ("name", *_ENDPOINT)})
        name = table.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SettingsError(f"{prefix}name: is not 1 to 64 letters, digits, - or _: give it a name")
        if name == NO_ENDPOINT:
            raise SettingsError(f"{prefix}name: {name} stands for no endpoint in metrics: give it another")
        if name in [endpoint.name for endpoint in found.values()]:
            raise SettingsError(f"{prefix}name: {name} is taken: give each endpoint a name of its own")
        endpoint = _endpoint(name, prefix, table)
        path = callback_path(endpoint.live_event_type_callback_url)
        if path in found:
            raise SettingsError(
                f"{prefix}live_event_type_callback_url: has the path of endpoint {found[path].name}, and the path is"
                " what tells them apart: give it another"
            )
        found[path] = endpoint
    return tuple(found.values())


def _endpoint(name: str, prefix: str, values: Mapping[str, Any]) -> EndpointSettings:
    """One endpoint from its own settings; `prefix` tells in errors which one it is."""
    if values.get("auth_type") == AuthType.NONE:  # there is no signature, so a key is not even read
        values = {one: value for one, value in values.items() if one not in ("key", "key_file", "previous_key")}
    endpoint = EndpointSettings(name, **_parse_all(_ENDPOINT, values, prefix))
    if endpoint.auth_type is AuthType.NONE:
        _check_secret_in_url(prefix, endpoint)
    elif not endpoint.key:
        raise SettingsError(
            f"{prefix}key: is not set: set it to the `key` of the registration, or run `receiver init` for a new one"
        )
    return endpoint


def _check_secret_in_url(prefix: str, endpoint: EndpointSettings) -> None:
    parts = urlsplit(endpoint.live_event_type_callback_url)
    secrets = [*parts.path.split("/"), *(pair.partition("=")[2] for pair in parts.query.split("&"))]
    if max(map(len, secrets)) < _SHORTEST_URL_SECRET:
        raise SettingsError(
            f"{prefix}live_event_type_callback_url: holds no secret, and with auth_type NONE the URL is all that tells"
            f" MetaStudio from others: put {_SHORTEST_URL_SECRET} or more random characters into its path or query, or"
            " use MSS_A"
        )


def _check_files(settings: Settings) -> None:
    for missing, there in permutations(("tls_key", "tls_certificate")):
        if getattr(settings, there) and not getattr(settings, missing):
            raise SettingsError(
                f"{missing}: is not set, but {there} is: set both, or none behind a proxy that ends TLS"
            )
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and Path(url.database or "").resolve() == settings.journal.resolve():
        raise SettingsError("journal: is the file of database_url: set it to another, which nothing else uses")
