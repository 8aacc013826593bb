"""Commands that ask the platform: `register` and `reconcile`. They alone load the vendor's SDK."""

from __future__ import annotations

import click

from receiver.cli.options import choose_endpoint, config_option, endpoint_option, read_settings
from receiver.cli.terminal import printable
from receiver.platform.client import Platform, connect
from receiver.platform.register import CONFIG, Difference, apply, differences, wanted_of

_region_option = click.option("--region", help="The platform's region, such as cn-north-4 or cn-east-3.")
_api_option = click.option("--api-endpoint", metavar="URL", help="Another address of the platform's API.")


def _connect(region: str | None, api_endpoint: str | None) -> Platform:
    if region is None and api_endpoint is None:
        raise click.UsageError("--region: name the region of your MetaStudio, such as cn-north-4 or cn-east-3")
    return connect(region, api_endpoint)


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
    endpoint = choose_endpoint(read_settings(), name)
    wanted = wanted_of(endpoint)
    platform = _connect(region, api_endpoint)
    before = platform.user_config() if room is None else platform.room(room)
    where = "the tenant" if room is None else f"room {printable(room)}"
    click.echo(f"{CONFIG} of {where}, compared with the endpoint {endpoint.name}:")
    differing = differences(before, wanted)
    _show(differing)
    if room is not None:
        inherits = (before.get(CONFIG) or {}).get("is_inheritance_platform_callback")
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
