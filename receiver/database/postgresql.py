"""Sessions with PostgreSQL that work whatever is set for the role or the database, and behind a pooler.

A pooler passes on only what stands inside a transaction, so whatever matters is set at the begin of each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import ExceptionContext

from receiver.settings.database_url import UrlInFile, options, servers
from receiver.settings.parsers import InvalidValueError

# What the URL may set otherwise. `primary` and not `read-write`: a role may have default_transaction_read_only.
# keepalives and tcp_user_timeout: after a partition this side does not wait for the other for hours.
_CONNECTION = {
    "connect_timeout": "5",  # seconds, for each host
    "target_session_attrs": "primary",
    "fallback_application_name": "metastudio-receiver",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",  # milliseconds
}
_VARIABLES = {"connect_timeout": "PGCONNECT_TIMEOUT", "target_session_attrs": "PGTARGETSESSIONATTRS"}
# Likewise for the server's side, whose own default is two hours. Behind a pooler it is for the pooler's connection.
_SESSION = {
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60s",
}
# What the URL's `options` may set otherwise, for each transaction. idle_in_transaction: when a connection is lost
# without a word, its transaction holds locks on keys that are about to be written again, until the server ends it.
# jit: compiling a query takes longer than any of ours.
_LIMITS = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
}
# What times and texts are written and read with.
_RELIED_ON = {"datestyle": "ISO", "timezone": "UTC", "standard_conforming_strings": "on"}
# Where something is written. `off` confirms what only memory has, and a server that is killed loses it; each other
# value is a choice, and stays. The warning about a wait for a standby that was cut short has to come.
_DURABLE = (
    "set_config('client_min_messages', 'warning', true), set_config('synchronous_commit',"
    " CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,"
    " true)"
)
_TRANSACTION_TIMEOUT_SINCE = (17,)
READ_ONLY = "read_only"  # the execution option of a transaction that writes nothing


def connect(url: URL, source: UrlInFile | None = None) -> Engine:
    """An engine for PostgreSQL that holds one connection. In its errors it says where the URL leads.

    With a `source`, each connection is made with what its file then holds; only the URL's `options` stay.
    """
    own = options(url)
    engine = create_engine(
        url.difference_update_query(["options"]),
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=1,
        max_overflow=0,
        use_native_hstore=False,
        connect_args=_connection_arguments(url),
    )
    session = {name: own.pop(name, value) for name, value in _SESSION.items()}
    in_transaction = _LIMITS | own | _RELIED_ON

    def set_up(connection: Any, _record: object) -> None:  # noqa: ANN401 (the driver's, which is not imported here)
        connection.execute(f"SELECT {_set_config(session, local=False)}")

    def begin(connection: Connection) -> None:
        values = dict(in_transaction)
        if (connection.dialect.server_version_info or ()) >= _TRANSACTION_TIMEOUT_SINCE:
            values.setdefault("transaction_timeout", "0")
        read_only = connection.get_execution_options().get(READ_ONLY)
        mode, durable = ("READ ONLY", "") if read_only else ("READ WRITE", f", {_DURABLE}")
        # DEFAULT is what is set for the role or the database, and not what another client of a pooler has left.
        connection.exec_driver_sql(
            f"BEGIN ISOLATION LEVEL READ COMMITTED {mode}; SET LOCAL search_path TO DEFAULT;"
            f" SELECT {_set_config(values, local=True)}{durable}",
            execution_options={"no_parameters": True},
        )

    def say_where(context: ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.add_detail(servers(url))

    def read_anew(dialect: Dialect, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        nonlocal url
        if source is not None:
            url = _now(source, dialect)
            parameters.update(dialect.create_connect_args(url.difference_update_query(["options"]))[1])

    event.listen(engine, "do_connect", read_anew)
    event.listen(engine, "connect", set_up)
    event.listen(engine, "begin", begin)
    event.listen(engine, "handle_error", say_where)
    return engine


def _now(source: UrlInFile, dialect: Dialect) -> URL:
    """The URL that the file holds now. What is wrong with it is reported like any other error of the database."""
    failure: type[Exception] = dialect.loaded_dbapi.OperationalError
    try:
        url = make_url(source.now())
    except InvalidValueError as error:
        raise failure(f"database_url_file: {error}") from error
    if url.get_backend_name() != dialect.name:
        raise failure("database_url_file: holds another kind of database now: restart the receiver")
    return url


def _connection_arguments(url: URL) -> dict[str, Any]:
    """What is not given in another place that libpq looks at."""
    given = {name for name, variable in _VARIABLES.items() if os.environ.get(variable)} | set(url.query)
    if "service" in url.query:  # which it does not tell the contents of
        given.add("target_session_attrs")
    defaults = {name: value for name, value in _CONNECTION.items() if name not in given}
    # BEGIN is sent by this module, together with what it sets. Statements are not prepared: behind a pooler the next
    # transaction may be in a session that does not have them.
    return defaults | {"client_encoding": "utf8", "autocommit": True, "prepare_threshold": None}


def _set_config(values: Mapping[str, str], *, local: bool) -> str:
    return ", ".join(f"set_config({_quoted(one)}, {_quoted(values[one])}, {local})" for one in values)


def _quoted(value: str) -> str:
    # E'…' reads the same whatever standard_conforming_strings is.
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
