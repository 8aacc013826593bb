"""Commands that ask the platform: `register` and `reconcile`. They alone load the vendor's SDK."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime

import click

from receiver.cli.export import as_json
from receiver.cli.options import (
    choose_endpoint,
    config_option,
    endpoint_option,
    open_database,
    operations_address,
    read_settings,
)
from receiver.database.insert import Row
from receiver.platform.client import Platform, is_id
from receiver.platform.connect import AddressError, connect
from receiver.platform.reconcile import reconcile as ask_and_compare
from receiver.platform.reconcile import why_behind
from receiver.platform.register import CONFIG, Difference, apply, differences, part_of, wanted_of
from receiver.protocol.platform import LOST, Finding
from receiver.text import printable

_MEANINGS = {
    Finding.END_MISSING: "it ended there, and no END came",
    Finding.SILENT: "it runs there, and nothing has come for five minutes",
    Finding.REGISTERED_ELSEWHERE: "its callbacks go to another URL",
    Finding.DURATION_GAP: "it was connected for another time there than here",
    Finding.UNKNOWN_THERE: "it is open here, and the platform has no such job",
}
_region_option = click.option("--region", help="The platform's region, such as cn-north-4 or cn-east-3.")
_api_option = click.option("--api-endpoint", metavar="URL", help="Another address of the platform's API.")


def _connect(region: str | None, api_endpoint: str | None) -> Platform:
    if region is None and api_endpoint is None:
        raise click.UsageError("--region: name the region of your MetaStudio, such as cn-north-4 or cn-east-3")
    try:
        return connect(region, api_endpoint)
    except AddressError as error:
        raise click.UsageError(printable(error)) from error


@click.command()
@config_option
@endpoint_option
@_region_option
@_api_option
@click.option("--room", help="Compare with this live room's own registration instead, and change nothing.")
@click.option("--apply", "apply_", is_flag=True, help="Write it. Without this nothing is changed.")
def register(*, name: str | None, region: str | None, api_endpoint: str | None, room: str | None, apply_: bool) -> None:
    """Compare what is registered for the tenant with these settings, and with --apply register them.

    Credentials are those of the vendor's tools: HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK, a profile, or the machine's
    agency.
    """
    if room is not None and apply_:
        raise click.UsageError("--room is only compared: --apply is for the tenant")
    if room is not None and not is_id(room):
        raise click.UsageError("--room: is not the id of a room")
    endpoint = choose_endpoint(read_settings(), name)
    wanted = wanted_of(endpoint)
    platform = _connect(region, api_endpoint)
    before = platform.user_config() if room is None else platform.room(room)
    where = "the tenant" if room is None else f"room {printable(room)}"
    click.echo(f"{CONFIG} of {where}, compared with the endpoint {endpoint.name}:")
    differing = differences(before, wanted)
    _show(differing)
    if room is not None:
        inherits = part_of(before).get("is_inheritance_platform_callback")
        if inherits is not None:
            click.echo(f"  is_inheritance_platform_callback: {printable(inherits)}")
    elif not differing:
        return
    elif apply_:
        apply(platform, before, wanted)
        click.echo("Registered, read again, and nothing else has changed.")
    else:
        click.echo("Nothing was changed: give --apply to register this.")


def _show(differing: list[Difference]) -> None:
    for one in differing:
        text = f"{one.now} -> {one.wanted}" if one.is_known else f"{one.now}; it would be written again"
        click.echo(f"  {one.name}: {printable(text)}")
    if not differing:
        click.echo("  is registered so already")


@click.command()
@config_option
@_region_option
@_api_option
@click.option(
    "--metrics",
    multiple=True,
    metavar="URL",
    help="A receiver's metrics, once for each receiver.  [default: /metrics of operations_listen]",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def reconcile(*, region: str | None, api_endpoint: str | None, metrics: tuple[str, ...], json_: bool) -> None:
    """Ask the platform what it did, and find the callbacks that never came.

    For a timer. Ends with 1 where callbacks were lost, and where the platform cannot be asked. Nothing is compared
    while a receiver's journal is behind.
    """
    settings, platform = read_settings(), _connect(region, api_endpoint)
    now = datetime.now(UTC)
    host, port = operations_address(settings)
    for url in metrics or (f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics",):
        behind = why_behind(url, now)
        if behind is not None:
            click.echo(
                as_json({"skipped": behind}) if json_ else f"Skipped, nothing was compared: {printable(behind)}."
            )
            return
    urls = [one.live_event_type_callback_url for one in settings.endpoints]
    database = open_database()
    rows = ask_and_compare(platform, database, urls, now, settings.stream_stale_after)
    found = sorted((row for row in rows if row["finding"]), key=lambda row: (row["finding"], row["job_id"]))
    counts = Counter(row["finding"] for row in found)
    if json_:
        findings = {name: counts[name] for name in Finding}
        click.echo(as_json({"checked_at": now, "jobs": len(rows), "findings": findings, "found": found}))
    else:
        for row in found:
            click.echo(_line(row))
        click.echo(f"Looked at {len(rows)} jobs of the platform: {sum(counts[name] for name in LOST)} lost callbacks.")
    sys.exit(1 if any(counts[name] for name in LOST) else 0)


def _line(row: Row) -> str:
    ended = "" if row["end_time"] is None else f" since {row['end_time']:%Y-%m-%d %H:%M:%S} UTC"
    why = " ".join(row[name] for name in ("error_code", "error_msg", "block_reason") if row[name])
    room = row["room_name"] or row["room_id"] or "-"
    words = (row["finding"], row["job_id"], room, f"{row['state'] or '-'}{ended}:", _MEANINGS[row["finding"]])
    return printable("  ".join(words) + (f" ({why})" if why else ""))
