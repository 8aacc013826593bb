"""Compares and writes the registration of callbacks: `live_event_callback_config`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from receiver.platform.client import Json, Platform, PlatformError
from receiver.protocol.signature import AuthType
from receiver.settings.settings import EndpointSettings

CONFIG = "live_event_callback_config"
_NOTIFY = "live_notify_config"
_SHOWN = ("live_exit_config", _NOTIFY)
_URL, _AUTH_TYPE, _KEY = "live_event_type_callback_url", "auth_type", "key"
_MASK = "****"
_LONGEST = 2048  # characters that are shown of a value: no URL is longer
_MASKED = re.compile(r".*\*{3}.*", flags=re.DOTALL)


class Difference(NamedTuple):
    """A field that is, or may be, registered otherwise: how it is, and how it is to be, with secrets masked.

    `is_known` is false where the platform masks what it is.
    """

    name: str
    now: str
    wanted: str
    is_known: bool = True


def require_public(url: str) -> None:
    """Refuse a URL that the platform cannot call, or not safely."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        is_local = not ip_address(host).is_global
    except ValueError:
        is_local = host in ("", "localhost") or host.endswith((".localhost", ".local", ".internal"))
    if parts.scheme != "https":
        raise PlatformError(f"{_URL}: is not an https:// URL, and MetaStudio calls no other")
    if is_local:
        raise PlatformError(f"{_URL}: {host} is of this machine or network: MetaStudio needs a public name")


def differences(config: Json, wanted: Json) -> list[Difference]:
    """What differs between a configuration of the platform and what an endpoint wants."""
    return list(_differences(part_of(config), wanted))


def _differences(now: Json, wanted: Json) -> Iterator[Difference]:
    for name in (_URL, _AUTH_TYPE, _KEY, "callback_event_type"):
        is_, to_be = now.get(name), wanted.get(name)
        if name == "callback_event_type":
            is_, to_be = (sorted(map(str, one)) if isinstance(one, list) else one for one in (is_, to_be))
        if name == _KEY:
            # Where the platform names none, `serve` would not take one either.
            is_, to_be = is_ or None, to_be or None
            if to_be is not None and isinstance(is_, str) and is_ != to_be and _MASKED.fullmatch(is_):
                yield Difference(name, "masked by the platform, so that it cannot be compared", _MASK, is_known=False)
                continue
        if is_ != to_be:
            to_show = "another one" if name == _KEY and is_ and to_be else _shown(name, to_be, wanted)
            yield Difference(name, _shown(name, is_, now), to_show)


def _shown(name: str, value: Any, config: Json) -> str:  # noqa: ANN401 (whatever JSON has)
    if value is None:
        return "not set"
    if name == _KEY:
        return _MASK
    shown = public(str(value), str(config.get(_AUTH_TYPE))) if name == _URL else str(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


def public(url: str, auth_type: str) -> str:
    """A registered URL without what may be a secret in it: user, query and, where nothing else is signed, the path."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _MASK
    path = parts.path if auth_type in (AuthType.MSS_A, AuthType.MSS_A_HEAD) else f"/{_MASK}"
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, path, _MASK if parts.query else "", ""))


def apply(platform: Platform, before: Json, wanted: Json) -> None:
    """Write what is wanted, leave everything else as it was read, and read it again.

    Raises `PlatformError` where it would, or did, change anything else.
    """
    masked = [path for name, value in before.items() if name != CONFIG for path in _masked(name, value)]
    if masked:
        raise PlatformError(
            f"nothing was written: the platform masks {', '.join(masked)}, which would be lost; register in its console"
        )
    kept = {name: value for name, value in part_of(before).items() if name not in (_KEY, *wanted)}
    body = {name: value for name, value in before.items() if value is not None} | {CONFIG: kept | wanted}
    if isinstance(body.get(_NOTIFY), dict):
        # What is written has an `action` that what is read has not: so the list stays as it is.
        body[_NOTIFY] = body[_NOTIFY] | {"action": "replace"}
    platform.set_user_config(body)
    after = platform.user_config()
    wrong = [one.name for one in differences(after, wanted) if one.is_known]
    wrong += [name for name, value in kept.items() if part_of(after).get(name) != value]
    if wrong:
        raise PlatformError(
            f"{CONFIG}: the platform took the configuration, and does not have it: {', '.join(wrong)} differ"
        )
    others = sorted(name for name in before.keys() | after.keys() if name != CONFIG and not _same(name, before, after))
    if others:
        # Of no other part it is known that it holds no secret.
        shown = (name for name in others if name in _SHOWN)
        was = ", ".join(others) + "".join(f"; {one} was {before.get(one)!r}, is {after.get(one)!r}" for one in shown)
        raise PlatformError(f"registered, but the platform changed something else: {was}. Put it back in its console")


def _same(name: str, before: Json, after: Json) -> bool:
    return bool(before.get(name) == after.get(name))


def _masked(path: str, value: Any) -> Iterator[str]:  # noqa: ANN401 (whatever JSON has)
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _masked(f"{path}.{name}", one)
    elif isinstance(value, list):
        for one in value:
            yield from _masked(path, one)
    elif isinstance(value, str) and _MASKED.fullmatch(value):
        yield path


def part_of(config: Json) -> Json:
    """The registration in a configuration; nothing where it has none."""
    part = config.get(CONFIG)
    return part if isinstance(part, dict) else {}


def registered_url(config: Json) -> str | None:
    """The URL that a configuration registers; None where it has none."""
    url = part_of(config).get(_URL)
    return url if isinstance(url, str) and url else None


def wanted_of(endpoint: EndpointSettings) -> Json:
    """What is to be registered for an endpoint, with its key."""
    require_public(endpoint.live_event_type_callback_url)
    return endpoint.registration
