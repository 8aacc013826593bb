"""The command that says how the running receiver is."""

from __future__ import annotations

import http.client
import json
import sys
from contextlib import closing

import click
from prometheus_client.parser import text_string_to_metric_families

from receiver.cli.options import config_option, operations_address, read_settings
from receiver.metrics import STATES
from receiver.settings.declaration import shown
from receiver.settings.settings import Settings
from receiver.text import printable

_TIMEOUT = 10  # seconds


@click.command()
@config_option
def status() -> None:
    """Show how the running receiver is: callbacks, journal, disk, database, streams.

    Asks its operations listener. Fails unless the journal takes writes and the database is up.
    """
    settings = read_settings()
    host, port = operations_address(settings)
    try:
        with closing(http.client.HTTPConnection(host, port, timeout=_TIMEOUT)) as connection:
            ready = json.loads(_get(connection, "/readyz"))
            numbers = _numbers(_get(connection, "/metrics"))
        takes_writes, is_up = ready["status"] == "ok", numbers["database_up"] == 1
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:  # the last of others
        where = f"operations_listen: no receiver answers at {host}:{port}"
        raise click.ClickException(printable(f"{where} ({error}): see whether it runs, and its log")) from error
    click.echo("\n".join(map(printable, _lines(settings, numbers, ready.get("problem", ""), is_up=is_up))))
    sys.exit(0 if takes_writes and is_up else 1)


def _get(connection: http.client.HTTPConnection, path: str) -> str:
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def _numbers(text: str) -> dict[str, float]:
    """The metrics by name, each summed over its labels, and by name and one label, such as ``streams state=END``."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("metastudio_")
            for key in (name, *(f"{name} {label}={value}" for label, value in sample.labels.items())):
                found[key] = found.get(key, 0) + sample.value
    return found


def _lines(settings: Settings, numbers: dict[str, float], problem: str, *, is_up: bool) -> list[str]:
    def count(name: str) -> str:
        return f"{numbers.get(name, 0):.0f}"

    def mebibytes(name: str) -> str:
        return f"{numbers.get(name, 0) / 2**20:,.0f} MiB"

    states = {state: numbers.get(f"streams state={state}", 0) for state in STATES}
    streams = ", ".join(f"{value:.0f} {state}" for state, value in states.items() if value)
    writes = f"takes no writes: {problem}" if problem else "takes writes"
    size = f"{mebibytes('journal_bytes')} of {mebibytes('journal_max_bytes')}"
    accepted, rejected = (count(f"callbacks_total outcome={one}") for one in ("accepted", "rejected"))
    return [
        f"callbacks  {accepted} accepted since the start, {rejected} rejected",
        f"journal    {writes}; {count('journal_events')} events wait, {size}",
        f"its file   {settings.journal.resolve()}, {mebibytes('journal_disk_free_bytes')} free on its disk",
        f"database   {'up' if is_up else 'down'}: {shown(settings)['database_url']}",
        f"streams    {streams or 'none'}; {count('streams_stale')} stale",
    ]
