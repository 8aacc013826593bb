"""The schema's revision, and the migrations that bring it to this program's."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, func, inspect, select, text

REVISION = "0004"  # of this program's schema: the newest in `migrations/`
READ_REVISION = text("SELECT version_num FROM alembic_version")
_OF_EACH_REVISION = ("events", "quarantine", "streams")  # its tables

_PACKAGE = Path(__file__).parents[1]
# In the wheel the migrations are inside the package, in a checkout beside it.
_MIGRATIONS = next(path for path in (_PACKAGE / "migrations", _PACKAGE.parent / "migrations") if path.is_dir())


class SchemaError(Exception):
    """The database's schema is not this program's. The message says what to run."""


def revision_of(connection: Connection) -> str | None:
    """The revision of the database's schema, None where there is none.

    Raises `SchemaError` where it is newer or another application's, or where the database cannot hold it.
    """
    _require_place(connection)
    found = inspect(connection)
    if not found.has_table("alembic_version"):
        return None
    revisions = connection.scalars(READ_REVISION).all()
    if not revisions:
        return None
    if not re.fullmatch("[0-9]{4}", revisions[0]) or not all(map(found.has_table, _OF_EACH_REVISION)):
        raise SchemaError(
            f"the table alembic_version, at {', '.join(revisions)}, is another application's: give the receiver a"
            " database of its own, or a schema of its own as the search_path of its role"
        )
    revision: str = revisions[0]
    if revision > REVISION:  # they are numbered
        raise SchemaError(
            f"the database's schema is at revision {revision}, which is newer than this receiver: upgrade the receiver,"
            " or set `database_url` to another database"
        )
    return revision


def _require_place(connection: Connection) -> None:
    """Refuse a PostgreSQL database that cannot hold each text, or no schema to make tables in."""
    if connection.dialect.name == "sqlite":
        return
    encoding, schema = connection.execute(select(func.current_setting("server_encoding"), func.current_schema())).one()
    if encoding != "UTF8":
        raise SchemaError(
            f"the database's encoding is {encoding}, which has no Chinese: make another with CREATE DATABASE …"
            " ENCODING 'UTF8' TEMPLATE template0, and set `database_url` to it"
        )
    if schema is None:
        raise SchemaError(
            "the role's search_path names no schema that it may use: ALTER ROLE … SET search_path = …, or GRANT USAGE"
            " ON SCHEMA"
        )


def require_revision(connection: Connection) -> None:
    """Raise `SchemaError` unless the database's schema is this program's."""
    current = revision_of(connection)
    if current != REVISION:
        raise SchemaError(
            f"the database's schema is {'missing' if current is None else f'at revision {current}'}, this receiver"
            f" needs {REVISION}: run `receiver migrate`; callbacks are kept in the journal until then"
        )


def upgrade(connection: Connection) -> None:
    """Bring the schema to this program's revision."""
    # Takes a third of the time that a start takes, and is rarely needed.
    from alembic import command, config  # noqa: PLC0415

    settings = config.Config(attributes={"connection": connection})
    settings.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    command.upgrade(settings, "head")


def execute_sql_file(connection: Connection, revision: str, name: str) -> None:
    """Execute `migrations/sql/REVISION/NAME.sql`, or where the databases differ `NAME.sqlite.sql` or the other."""
    folder = _MIGRATIONS / "sql" / revision
    files = (folder / f"{name}.sql", folder / f"{name}.{connection.dialect.name}.sql")
    (statement,) = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    # Without parameters the driver leaves `%` alone, and psycopg takes several statements.
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
