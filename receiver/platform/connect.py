"""Makes the client of the platform's API with the vendor's SDK, an extra that is loaded here alone."""

from __future__ import annotations

import configparser
import logging
import re
from typing import Any
from urllib.parse import urlsplit

from receiver.platform.client import Platform, PlatformError, Sdk

_LOCAL = ("localhost", "127.0.0.1", "::1")
_TIMEOUT = (10.0, 30.0)  # seconds, to connect and to be answered


class AddressError(PlatformError):
    """The region, or the other address of the API, is none."""


def connect(region: str | None, endpoint: str | None, *, timeout: tuple[float, float] = _TIMEOUT) -> Platform:
    """The platform in a region, or at another endpoint; credentials are found as by all of the vendor's tools."""
    if endpoint is not None:
        _require_private(endpoint)
    try:
        from huaweicloudsdkcore.auth.credentials import BasicCredentials  # type: ignore[import-untyped]  # noqa: PLC0415
        from huaweicloudsdkcore.exceptions import exceptions  # type: ignore[import-untyped]  # noqa: PLC0415
        from huaweicloudsdkcore.http.http_config import HttpConfig  # type: ignore[import-untyped]  # noqa: PLC0415
        from huaweicloudsdkmetastudio import v1  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise PlatformError(
            "the vendor's SDK is not installed here: install what deploy/requirements-platform.txt pins, or the extra"
            " `platform` of this package"
        ) from error
    place = None if region is None else _place(region, endpoint)
    # It has no handler, so that Python itself would print what it logs beside the error that this ends with.
    logging.getLogger(f"HuaweiCloud-SDK-{v1.MetaStudioClient.__name__}").addHandler(logging.NullHandler())
    credentials = _credentials(exceptions.SdkException)
    if place is None and isinstance(credentials, BasicCredentials) and not credentials.project_id:
        raise PlatformError("the project is not known: set HUAWEICLOUD_SDK_PROJECT_ID, or give --region")
    builder = v1.MetaStudioClient.new_builder().with_http_config(HttpConfig(timeout=timeout))
    builder = builder.with_credentials(credentials)
    builder = builder.with_endpoint(endpoint) if place is None else builder.with_region(place)
    try:
        client = builder.build()
    except (TypeError, ValueError, OSError, exceptions.SdkException) as error:
        raise PlatformError(
            f"the project of these credentials in {region} could not be found out ({type(error).__name__}): set"
            " HUAWEICLOUD_SDK_PROJECT_ID"
        ) from error
    return Platform(Sdk(client, str(endpoint if place is None else place.endpoints[0]), v1, exceptions))


def _place(region: str, endpoint: str | None) -> Any:  # noqa: ANN401 (the SDK has no types)
    from huaweicloudsdkcore.region.region import Region  # type: ignore[import-untyped]  # noqa: PLC0415
    from huaweicloudsdkmetastudio.v1.region.metastudio_region import (  # type: ignore[import-untyped]  # noqa: PLC0415
        MetaStudioRegion,
    )

    try:
        return Region(region, endpoint) if endpoint else MetaStudioRegion.value_of(region)
    except KeyError as error:
        known = ", ".join(sorted(MetaStudioRegion.static_fields))
        raise AddressError(f"--region: name one of {known}, or give --api-endpoint too") from error


def _credentials(sdk_error: type[Exception]) -> Any:  # noqa: ANN401 (the SDK has no types)
    from huaweicloudsdkcore.auth.provider import (  # type: ignore[import-untyped]  # noqa: PLC0415
        CredentialProviderChain,
    )

    try:
        found = CredentialProviderChain.get_basic().get_credentials()
    except configparser.Error:
        # Without its text, which quotes the file.
        raise PlatformError(
            "the profile in ~/.huaweicloud/credentials cannot be read: write [basic], and below it ak = … and sk = …,"
            " one a line, with %% for %"
        ) from None
    except (TypeError, ValueError, OSError, sdk_error) as error:
        raise PlatformError(
            "no credentials were found: set HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK, or write a profile to"
            " ~/.huaweicloud/credentials, or give this machine an agency"
        ) from error
    given = (getattr(found, name, None) for name in ("ak", "sk", "security_token"))
    if any(value and not re.fullmatch("[!-~]+", value) for value in given):
        raise PlatformError(
            "the credentials have a blank, a line end or a letter that none has: see HUAWEICLOUD_SDK_AK, _SK and"
            " _SECURITY_TOKEN, or the profile"
        )
    return found


def _require_private(endpoint: str) -> None:
    """Refuse plain HTTP but on this machine: the key is in what is written."""
    try:
        parts = urlsplit(endpoint)
        is_right = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL)
    except ValueError:
        is_right = False
    if not is_right:
        raise AddressError("--api-endpoint: is not an https:// URL")
