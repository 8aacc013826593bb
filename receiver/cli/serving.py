"""Commands to set up a receiver and to run it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import click

from receiver import logs
from receiver.app import run
from receiver.cli.options import choose_endpoint, config_option, endpoint_option, open_url, read_settings
from receiver.protocol.signature import AuthType
from receiver.settings.declaration import declared, shown, written
from receiver.settings.load import DEFAULT_FILE, parse
from receiver.settings.settings import DEFAULT_URL, SHORTEST_KEY, Settings
from receiver.text import printable
from receiver.tools.bootstrap import write_configuration

logger = logging.getLogger(__name__)

_LONGER_KEY = f"use {SHORTEST_KEY} random characters or more, such as `receiver init` makes"


@click.command()
@config_option
@click.option("--url", default=DEFAULT_URL, help="The URL to register with MetaStudio.", show_default=True)
@click.option("--auth-type", type=click.Choice([AuthType.MSS_A, AuthType.MSS_A_HEAD]), default=AuthType.MSS_A)
def init(url: str, auth_type: str) -> None:
    """Write receiver.toml with a random key, and a self-signed certificate for localhost.

    Nothing is ever overwritten.
    """
    path: Path = click.get_current_context().meta.get("config", Path(DEFAULT_FILE))
    parse("live_event_type_callback_url", url)  # before anything is written
    try:
        write_configuration(path, url, auth_type)
    except FileExistsError as error:
        raise click.ClickException(f"{error.filename} exists, and is not overwritten: move it away first") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or path}: {error.strerror}") from error
    where = written(declared(Settings)["operations_listen"].default)
    click.echo(f"Wrote {path} with a new key. Next: receiver serve, and open http://{where}/ in a browser")


@click.command()
@config_option
def serve() -> None:
    """Receive callbacks until SIGTERM or Ctrl-C.

    Answers 200 only for what is on disk, and keeps doing so while the database is away.
    """
    settings = read_settings()
    os.umask(0o077)  # what it writes holds stream keys
    logs.set_up()
    for endpoint in settings.endpoints:
        if endpoint.has_short_key:
            logger.warning("key is short", extra={"endpoint": endpoint.name, "next": _LONGER_KEY})
    run(settings, _announce)


@click.command()
@config_option
def migrate() -> None:
    """Bring the database's schema to this version's.

    `serve` does so itself for SQLite; a PostgreSQL database, which others may share, is migrated only by this.
    """
    before, after = open_url(read_settings().database_url).migrate()
    was = " already." if before == after else f"; it was {printable(before)}."
    click.echo(f"The schema is at revision {after}{was}")


@click.command("config")
@config_option
@endpoint_option
@click.option("--registration", is_flag=True, help="Print the JSON to register with MetaStudio, with the key in it.")
def show_config(name: str | None, *, registration: bool) -> None:
    """Show the settings in force, secrets masked."""
    settings = read_settings()
    chosen = [choose_endpoint(settings, name)] if registration or name is not None else settings.endpoints
    for one in chosen:
        if one.has_short_key:
            click.echo(f"Warning: key of endpoint {one.name}: is short: {_LONGER_KEY}", err=True)
    if registration:
        click.echo(json.dumps({"live_event_callback_config": chosen[0].registration}, indent=2, ensure_ascii=False))
        return
    in_force = shown(settings) if name is None else {}
    for one in chosen:
        in_force |= {f"endpoints.{one.name}.{key}": value for key, value in shown(one).items()}
    click.echo("\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in in_force.items()))


def _announce(settings: Settings) -> None:
    in_force = shown(settings)
    lines = [f"Receiving on {'https' if settings.tls_certificate else 'http'}://{in_force['listen']}, until Ctrl-C."]
    if not settings.tls_certificate:
        lines.append("  This is plain HTTP: MetaStudio needs HTTPS, so put a proxy in front that ends TLS.")
    lines += [f"  register      {one.public_url} with auth_type {one.auth_type}" for one in settings.endpoints]
    lines += [
        "  key and JSON  receiver config --registration",
        f"  metrics       http://{in_force['operations_listen']}/metrics",
        *([f"  status page   http://{in_force['operations_listen']}/"] if settings.status_page else []),
        f"  database      {in_force['database_url']}",
        "  next          receiver simulate (or make demo) in a second terminal",
    ]
    click.echo("\n".join(lines))
