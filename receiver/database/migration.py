"""The schema's revision, and the migrations that bring it to this program's."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

REVISION = "0002"  # of this program's schema: the newest in `migrations/`
READ_REVISION = text("SELECT version_num FROM alembic_version")

_PACKAGE = Path(__file__).parents[1]
# In the wheel the migrations are inside the package, in a checkout beside it.
_MIGRATIONS = next(path for path in (_PACKAGE / "migrations", _PACKAGE.parent / "migrations") if path.is_dir())


class SchemaError(Exception):
    """The database's schema is not this program's. The message says what to run."""


def revision_of(connection: Connection) -> str | None:
    """The revision of the database's schema, None where there is none; raises `SchemaError` where it is newer."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(READ_REVISION)
    if revision is not None and revision > REVISION:  # they are numbered
        raise SchemaError(
            f"the database's schema is at revision {revision}, which is newer than this receiver: upgrade the receiver,"
            " or set `database_url` to another database"
        )
    return revision


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
