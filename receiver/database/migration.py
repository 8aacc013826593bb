"""The schema's revision, and the way to this program's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

if TYPE_CHECKING:
    from alembic.config import Config

REVISION = "0002"  # of this program's schema: the newest in `migrations/`
REVISION_IN_USE = text("SELECT version_num FROM alembic_version")


class SchemaError(Exception):
    """The database's schema is not this program's. The message says what to run."""


def revision_of(connection: Connection) -> str | None:
    """The revision of the database's schema, None where there is none; raises `SchemaError` where it is newer."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(REVISION_IN_USE)
    if revision not in (None, REVISION) and not _is_known(revision):
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
    from alembic import command  # noqa: PLC0415 (takes a third of a start's time, and nearly all do without)

    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_known(revision: str) -> bool:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 (likewise)

    return revision in {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}


def _alembic() -> Config:
    from alembic.config import Config  # noqa: PLC0415 (likewise)

    here = Path(__file__).parents[1]
    # In the wheel the migrations lie inside the package, in a checkout beside it.
    folder = next(path for path in (here / "migrations", here.parent / "migrations") if path.is_dir())
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
