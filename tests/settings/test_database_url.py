"""The setting `database_url`, whose password is to be shown nowhere."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from urllib.parse import quote, unquote

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.errors import problem_of, remedy_of
from receiver.logs import JSONFormatter
from receiver.projector.outage import Outages
from receiver.settings.database_url import database_url, options, public, servers
from receiver.settings.parsers import InvalidValueError
from tests.helpers.receiver import KEY

START = "postgresql+psycopg://"
# With letters and signs that are next to each other in nothing else that is printed.
AWKWARD = st.text(alphabet="QXZJ79@/#?%:[]&=+;,!$'\"\\ é秘\t", min_size=4, max_size=24)


def parts(password: str) -> set[str]:
    """What must not be shown of it: each four characters in a row with a letter, however it was written."""
    forms = {password, quote(password, safe=""), quote(password), unquote(password), json.dumps(password)[1:-1]}
    found = {form[at : at + 4] for form in forms for at in range(len(form) - 3)}
    return {part for part in found if set(part) & set("QXZJé秘")}


@settings(deadline=None, max_examples=200)
@given(AWKWARD, st.booleans(), st.sampled_from(["127.0.0.1:1", "[::1]:1", "127.0.0.1:1,127.0.0.1:2"]))
def test_no_part_of_a_password_is_shown(password: str, is_encoded: bool, host: str) -> None:  # noqa: FBT001
    """However a password is written, no part of it is in the banner, an error, a traceback or the log."""
    written = quote(password, safe="") if is_encoded else password
    host, several, _ = host.partition(",")
    where = f"@/name?host={host}&host=127.0.0.1:2" if several else f"@{host}/name"
    said = "\n".join(everything_said(f"{START}receiver:{written}{where}", is_right=is_encoded))
    assert [part for part in parts(password) if part in said] == []


def everything_said(url: str, *, is_right: bool) -> Iterator[str]:
    """All that the receiver says with this URL: of a wrong one, or of a server that is not there."""
    shown = CliRunner().invoke(main, ["config"], env={"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": url})
    yield shown.output
    try:
        database_url(url)
    except InvalidValueError as error:
        assert not is_right
        assert shown.exit_code == 1
        yield str(error)
        return
    assert shown.exit_code == 0
    yield from (public(url), servers(make_url(url)))
    with closing(Database(url)) as database:
        try:
            database.check_schema()
        except SQLAlchemyError as error:
            yield from (problem_of(error), "".join(traceback.format_exception(error)), logged(error))
        else:
            raise AssertionError("there is no such server")


def logged(error: Exception) -> str:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    logger = logging.getLogger("receiver.projector.outage")
    logger.addHandler(handler)
    try:
        Outages().failed("connection", problem_of(error), remedy_of(error))
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


@pytest.mark.parametrize("sign", '@/#?[]% <>"\\^`{|}')
@pytest.mark.parametrize("password", ["QX{}ZJ", "{}QX", "QX{}"])
def test_password_that_is_not_encoded(password: str, sign: str) -> None:
    """A sign that means something else in a URL is refused in the password, and named with its remedy."""
    written = password.format(sign) if sign not in "{}" else password.replace("{}", sign)
    for where in ("@h/name", "@h:5432/name", "@/name?host=/run/postgresql"):
        with pytest.raises(InvalidValueError, match="percent-encode the password") as refused:
            database_url(f"{START}receiver:{written}{where}")
        assert f"{quote(sign, safe='')} for" in str(refused.value) or sign not in "@/#?% "
        encoded = f"{START}receiver:{quote(written, safe='')}{where}"
        assert make_url(database_url(encoded)).password == written


@pytest.mark.parametrize("password", ["a:b", "a-b.c_d~e", "!$&'()*+,;=", "é秘", ""])
def test_password_that_needs_no_encoding(password: str) -> None:
    """What can only be the password is taken as it is."""
    assert make_url(database_url(f"{START}receiver:{password}@h/name")).password == password


SHOWN = {
    "receiver:QX@h/name": "receiver:***@h/name",
    "receiver:QX@h:5433/name?sslmode=require&password=QX": "receiver:***@h:5433/name",
    "receiver:QX@/name?host=a:5432&host=b:5433&passfile=QX": "receiver:***@/name?host=a:5432&host=b:5433",
    "receiver:QX@a,b/name": "receiver:***@a,b/name",
    "receiver@/name?host=/run/postgresql": "receiver@/name?host=/run/postgresql",
    "/?service=metastudio&sslpassword=QX": "/?service=metastudio",
}


@pytest.mark.parametrize("url", SHOWN)
def test_hosts_are_shown(url: str) -> None:
    """The banner and `receiver config` show the URL with all of its hosts, without what may be a secret."""
    shown = public(database_url(START + url))
    assert shown == START + SHOWN[url]
    done = CliRunner().invoke(main, ["config"], env={"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": START + url})
    assert f"database_url = {json.dumps(shown)}" in done.stdout.splitlines()


SERVERS = {
    "u@h/d": "h",
    "u@h:5433/d": "h port 5433",
    "u@/d?host=a:1&host=b:2": "a:1, b:2",
    "u@/d?host=/run/postgresql&port=5433": "/run/postgresql port 5433",
    "?service=metastudio": "service metastudio",
    "/d": "the default host",
}


@pytest.mark.parametrize("url", SERVERS)
def test_servers(url: str) -> None:
    """Errors name the server as the URL does."""
    assert servers(make_url(START + url)) == SERVERS[url]


REFUSED = {
    "h:5432,i:5433/d": "host=HOST:PORT&host=HOST:PORT",
    "h/d?prepare_threshold=5": "prepare_threshold",
    "h/d?client_encoding=latin1": "client_encoding",
    "h/d?autocommit=1": "autocommit",
    "h/d?options=statement_timeout": "-c name=value",
    "h/d?options=-c%20a%3D1%20-d": "-c name=value",
    "?sslmode=require": "names no database",
}


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_refused(url: str) -> None:
    """What the receiver could not follow is refused in words."""
    with pytest.raises(InvalidValueError, match=REFUSED[url]):
        database_url(START + url)


OPTIONS = {
    "": {},
    "-c statement_timeout=30s": {"statement_timeout": "30s"},
    "-cjit=on --lock-timeout=1s -c  search_path=a,b": {"jit": "on", "lock_timeout": "1s", "search_path": "a,b"},
    r"-c search_path=a\ b\\c -c x.y=": {"search_path": r"a b\c", "x.y": ""},
}


@pytest.mark.parametrize("given", OPTIONS)
def test_options(given: str) -> None:
    """The URL's options are read as the server reads them."""
    assert options(make_url(f"{START}h/d?options={quote(given)}")) == OPTIONS[given]
