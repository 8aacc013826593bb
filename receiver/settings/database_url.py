"""The setting `database_url`: what it may be, and what of it people are shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from receiver.settings.parsers import InvalidValueError, content, path, text

POSTGRESQL = "postgresql+psycopg"
# What the URL may hold before the @ (RFC 3986, 3.2.1): anything else is percent-encoded. Letters of any language are
# taken, because nothing else can be meant by them.
_USER = re.compile(r"(?:[\w\-.~!$&'()*+,;=:]|%[0-9A-Fa-f]{2})*")
# Of the driver, not of the server. Prepared statements go astray behind a pooler, and texts are UTF-8.
_REFUSED = frozenset(
    {"autocommit", "client_encoding", "context", "cursor_factory", "prepare_threshold", "replication", "row_factory"}
)
_SHOWN = ("service", "host", "hostaddr", "port", "dbname")
# -c name=value or --name=value, where a backslash makes a blank part of the value, as the server reads them.
_OPTION = re.compile(r"\s*(?:-c\s*|--)(?P<name>[A-Za-z_][\w.\-]*)=(?P<value>(?:\\.|[^\\\s])*)(?=\s|$)", re.DOTALL)


def database_url(value: object) -> str:
    """The URL of a database of a supported kind, with a name."""
    url = text(value)
    scheme, separator, rest = url.partition("://")
    if scheme == "postgresql":
        raise InvalidValueError(f"names no driver: begin it with {POSTGRESQL}://")
    if scheme not in ("sqlite", POSTGRESQL) or not separator:
        raise InvalidValueError(f"is neither sqlite:///… nor {POSTGRESQL}://…")
    if scheme == POSTGRESQL:
        _check_encoded(rest)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidValueError(
            f"has a port that is no number: write it as {POSTGRESQL}://USER:PASSWORD@HOST:PORT/NAME, and several hosts"
            f" as {POSTGRESQL}://USER:PASSWORD@/NAME?host=HOST:PORT&host=HOST:PORT"
        ) from error
    if parsed.database in (None, "", ":memory:") and not {"service", "dbname"} & set(parsed.query):
        raise InvalidValueError("names no database: end it with a file (sqlite) or a database's name")
    if scheme == POSTGRESQL:
        _check_query(parsed)
    return url


class UrlInFile(str):  # noqa: SLOT000 (a slot that mypy would not see)
    """The URL that a file held, and the file, which may hold another one by now: its password may change."""

    file: Path

    def __new__(cls, url: str, file: Path) -> Self:
        """`url` with its file."""
        made = super().__new__(cls, url)
        made.file = file
        return made

    def now(self) -> str:
        """What the file holds now; raises `InvalidValueError`."""
        return database_url(content(self.file, "the URL alone"))


def database_url_in_file(value: object) -> UrlInFile:
    """The URL that the named file holds, without the line end that editors add."""
    file = path(value)
    return UrlInFile(database_url(content(file, "the URL alone")), file)


def _check_encoded(rest: str) -> None:
    """Refuse what would make a part of the password the host or the database's name."""
    user, _, server = rest.rpartition("@")
    password = user.partition(":")[2]
    if not _USER.fullmatch(user) or "%00" in password or (":" in user and "#" in server):
        raise InvalidValueError(
            "has a character that belongs elsewhere in a URL, such as @, /, # or a blank: percent-encode the password,"
            " with %40 for @, %2F for /, %23 for #, %3F for ?, %25 for %, %20 for a blank"
        )


def _check_query(url: URL) -> None:
    refused = sorted(_REFUSED & set(url.query))
    if refused:
        raise InvalidValueError(f"sets {refused[0]}, which the receiver sets itself: leave it out")
    options(url)


def options(url: URL) -> dict[str, str]:
    """The server's settings that the URL's own `options` make, by name; raises `InvalidValueError`."""
    found, end = dict[str, str](), 0
    given = " ".join(url.normalized_query.get("options", ())).rstrip()
    while end < len(given):
        match = _OPTION.match(given, end)
        if match is None:
            raise InvalidValueError("has options that are not a list of -c name=value: write them so, percent-encoded")
        found[match["name"].lower().replace("-", "_")] = re.sub(r"\\(.)", r"\1", match["value"], flags=re.DOTALL)
        end = match.end()
    return found


def servers(url: URL) -> str:
    """Where the URL leads, for people: its hosts or its service, without what may be a secret."""
    query = url.normalized_query
    if "service" in query:
        return f"service {query['service'][0]}"
    hosts = ", ".join(query.get("host") or query.get("hostaddr") or (url.host or "the default host",))
    ports = ", ".join(query.get("port", (str(url.port or ""),)))
    return f"{hosts} port {ports}" if ports else hosts


def public(url: str) -> str:
    """The URL without what may be a secret in it: its password, and all of its query but the hosts."""
    parsed = make_url(url)
    base = parsed.set(query={}).render_as_string(hide_password=True)
    shown = [f"{name}={one}" for name in _SHOWN for one in parsed.normalized_query.get(name, ())]
    return f"{base}?{'&'.join(shown)}" if shown else base
