"""What several commands share: their options, and what these stand for."""

from __future__ import annotations

import os
from pathlib import Path

import click
from sqlalchemy import make_url

from receiver.database.database import Database
from receiver.settings.database_url import UrlInFile
from receiver.settings.load import DEFAULT_FILE, load
from receiver.settings.settings import EndpointSettings, Settings

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (where it listens, and where it is reached)


def _remember(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.meta["config"] = value


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=_remember,
    expose_value=False,
    help=f"The TOML file.  [default: RECEIVER_CONFIG, or {DEFAULT_FILE} in this folder]",
)
endpoint_option = click.option("--endpoint", "name", help="Which of several [[endpoints]] to use.")


def read_settings() -> Settings:
    """The settings, from the file that --config names; raises `SettingsError`."""
    return load(click.get_current_context().meta.get("config"), os.environ)


def open_database(*, read_only: bool = False) -> Database:
    """The database of the settings, until the command ends; there must be one, with this version's schema.

    With `read_only` also where the role may only read.
    """
    url = read_settings().database_url
    parsed = make_url(url)
    if read_only and parsed.get_backend_name() == "postgresql" and "target_session_attrs" not in parsed.query:
        parsed = parsed.update_query_dict({"target_session_attrs": "any"})
        to_any = parsed.render_as_string(hide_password=False)
        url = UrlInFile(to_any, url.file) if isinstance(url, UrlInFile) else to_any
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        # Whose user makes it owns it: let that be the receiver's.
        raise click.ClickException(f"database_url: {parsed.database} is no file: `receiver serve` makes it")
    database = open_url(url)
    database.check_schema()
    return database


def open_url(url: str) -> Database:
    """The database at `url`, until the command ends."""
    database = Database(url)
    click.get_current_context().call_on_close(database.close)
    return database


def operations_address(settings: Settings) -> tuple[str, int]:
    """The host and port at which the operations listener is reached from here."""
    host, port = settings.operations_listen
    return _ANY_ADDRESS.get(host, host), port


def choose_endpoint(settings: Settings, name: str | None) -> EndpointSettings:
    """The endpoint that --endpoint names, or the only one."""
    found = [one for one in settings.endpoints if name in (None, one.name)]
    if len(found) != 1:
        names = ", ".join(one.name for one in settings.endpoints)
        raise click.UsageError(f"--endpoint: name one of {names}")
    return found[0]
