"""Parsers of single values: what a setting may be, and what is said of anything else.

Each takes the value as the file or the environment has it, and raises `InvalidValueError`. What is refused is not
shown: it may be a secret that belongs to another setting.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import unquote, urlsplit

from receiver.addresses import Network
from receiver.protocol.signature import AUTO, FORMS, SECRET_PARAMETER, TIME_PARAMETER, AuthType
from receiver.protocol.url import callback_path

_LONGEST_URL = 2048  # what live_event_type_callback_url takes
_LONGEST_KEY = 32  # what key takes
_LARGEST_PORT = 65535
_URL_CHARACTERS = re.compile(r"[^\s\x00-\x1f\x7f\"<>\\^`{|}#]+")
_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")


class InvalidValueError(Exception):
    """A value is wrong. The message says how, and the remedy; it holds no secret and does not name the setting."""


def text(value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise InvalidValueError("is not a text: put it in quotes")
    _refuse("is empty: set it, or leave it out", when=not value)
    # In os.environ a byte that is not UTF-8 is a lone surrogate.
    _refuse("holds a NUL, or bytes that are not UTF-8: write it again", when=re.search("[\0\ud800-\udfff]", value))
    return value


def path(value: object) -> Path:
    """The path of a file, which need not exist."""
    found = text(value)
    _refuse("is the content of a file: name a file that holds it", when="\n" in found or "-----BEGIN" in found)
    return Path(found)


def number(value: object, least: int = 1) -> int:
    """A whole number, or its decimal digits."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidValueError(f"is not a whole number of {least} or more")
    return value


def address(value: object) -> tuple[str, int]:
    """The host and port to listen on; without a host, any IPv4 address of the machine."""
    match = _ADDRESS.fullmatch(text(value))
    if match is None or int(match["port"]) > _LARGEST_PORT:
        raise InvalidValueError("is not host:port, such as 0.0.0.0:8443 or [::]:8443")
    return match["v6"] or match["host"] or "0.0.0.0", int(match["port"])  # noqa: S104


def switch(value: object) -> bool:
    """Whether something is wanted."""
    found = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise InvalidValueError("is neither true nor false")
    return found


def host_names(value: object) -> tuple[str, ...]:
    """Whole names of hosts, without ports, in lower case: a list, or a text with commas between them."""
    names = [text(part).lower() for part in _parts(value, 'write it as ["receiver.internal"]')]
    wrong = "holds what is no whole host name, such as receiver.internal: leave out http:// and the port"
    _refuse(wrong, when=not all(map(_HOST_NAME.fullmatch, names)))
    return tuple(names)


def networks(value: object) -> tuple[Network, ...]:
    """IP addresses and networks: a list, or a text with commas between them."""
    return tuple(_network(text(part)) for part in _parts(value, 'write it as ["127.0.0.1", "10.0.0.0/8"]'))


def _parts(value: object, remedy: str) -> list[object]:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise InvalidValueError(f"is not a list: {remedy}")
    return parts


def _network(part: str) -> Network:
    try:
        network = ip_network(part)
    except ValueError as error:
        raise InvalidValueError(
            "holds what is no address, nor a network with all bits after its prefix 0, such as 10.0.0.0/8"
        ) from error
    everywhere = f"{part} is every address, so that any client could say it is another: name your proxies"
    _refuse(everywhere, when=network.prefixlen == 0)
    return network


def callback_url(value: object) -> str:
    """A URL that can be registered with MetaStudio, exactly as written."""
    url = text(value)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        # The error's own text would show the URL, and with it what may be a secret.
        raise InvalidValueError("is not a URL: write https://, the host, the path and nothing odd") from error
    _refuse("does not begin with https://, and MetaStudio takes nothing else", when=parts.scheme != "https")
    _refuse(f"has {len(url)} characters; MetaStudio takes at most {_LONGEST_URL}", when=len(url) > _LONGEST_URL)
    _refuse(
        "is not a URL that can be registered: it needs a host, and takes no user, fragment, blank or other character"
        " that has to be percent-encoded",
        when=not host or port == 0 or "@" in parts.netloc or not _URL_CHARACTERS.fullmatch(url),
    )
    names = {unquote(pair.partition("=")[0]).lower() for pair in parts.query.split("&")}
    signature = {SECRET_PARAMETER.lower(), TIME_PARAMETER.lower()}
    _refuse(f"holds {SECRET_PARAMETER} or {TIME_PARAMETER}, which MetaStudio adds: remove", when=names & signature)
    _refuse("has the path /healthz, which is taken: choose another", when=callback_path(url) == b"/healthz")
    return url


def auth_type(value: object) -> AuthType:
    """One of the vendor's auth types that this receiver serves."""
    name = text(value)
    _refuse("MEITUAN_DEFAULT is Meituan's own scheme, for its API alone: use MSS_A", when=name == "MEITUAN_DEFAULT")
    _refuse(f"is none of {', '.join(AuthType)}", when=name not in list(AuthType))
    return AuthType(name)


def signature_form(value: object) -> str:
    """The name of a signature form, or ``auto``."""
    name = text(value)
    _refuse(f"is none of {AUTO}, {', '.join(FORMS)}", when=name not in (AUTO, *FORMS))
    return name


def key(value: object) -> str:
    """A key that can be registered with MetaStudio."""
    found = text(value)
    _refuse("is blank, so anybody could sign: set it to the `key` of the registration", when=not found.strip())
    _refuse(f"has {len(found)} characters; MetaStudio takes at most {_LONGEST_KEY}", when=len(found) > _LONGEST_KEY)
    _refuse("begins or ends with a blank: remove it, there and in the registration", when=found != found.strip())
    return found


def key_or_none(value: object) -> str:
    """A key, or the empty text for none."""
    return "" if value == "" else key(value)


def key_in_file(value: object) -> str:
    """The key that the named file holds, without the line end that editors add."""
    return key(content(path(value), "the key alone"))


def content(file: Path, what: str) -> str:
    """What stands in a file, which holds `what`, without the line end that editors add."""
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        # Without the path, in case somebody set it to the secret itself.
        raise InvalidValueError(f"{problem}: name a file that holds {what}") from error


def _refuse(problem: str, *, when: object) -> None:
    if when:
        raise InvalidValueError(problem)
