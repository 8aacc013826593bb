"""The platform's API, asked through the vendor's SDK."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

Json = dict[str, Any]

PAGE = 100  # jobs: the most that the platform lists at once
_PACE = 0.1  # seconds between two requests: the lowest limit that is published for neighbouring queries
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds, before a request that may succeed later is repeated
_TOO_MANY_CODE, _TOO_MANY = "APIGW.0308", 429
_REDIRECTS, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _SERVER_ERROR = 300, 401, 403, 404, 500


class PlatformError(Exception):
    """The platform did not do what it was asked for. The message says what to do, and holds no secret."""

    def __init__(self, message: str, *, status: int | None = None, is_passing: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_passing = is_passing  # so that it may help to try again


def is_id(text: str | None) -> bool:
    """Whether it may be the id of a room or a job, and so stand in a path."""
    return text is not None and re.fullmatch("[0-9A-Za-z_-]{1,128}", text) is not None


class Sdk(NamedTuple):
    """What is used of the SDK: a client, where it asks, the module of the requests' classes, that of the exceptions."""

    client: Any
    endpoint: str
    requests: Any
    exceptions: Any


class Platform:
    """The platform's API: each request waits its turn, and is repeated where that may help."""

    def __init__(
        self, sdk: Sdk, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._sdk = sdk
        self._clock = clock
        self._sleep = sleep
        self._asked_at = float("-inf")

    def user_config(self) -> Json:
        """The tenant's configuration, as it is sent: with what the SDK does not know of, too."""
        return self._ask("ShowSmartLiveUserConfig")

    def set_user_config(self, config: Json) -> None:
        """Write the tenant's configuration."""
        self._ask("UpdateSmartLiveUserConfig", body=config)

    def room(self, room_id: str) -> Json:
        """A live room."""
        return self._ask("ShowSmartLiveRoom", room_id=room_id)

    def job(self, room_id: str, job_id: str) -> Json | None:
        """One job; None where the platform has none such."""
        try:
            return self._ask("ShowSmartLive", room_id=room_id, job_id=job_id)
        except PlatformError as error:
            if error.status != _NOT_FOUND:
                raise
            return None

    def jobs(self, states: Sequence[str], create_since: datetime | None = None) -> Iterator[Json]:
        """All jobs in these states, the first that was created first, so that those to come are on the last page.

        A job that leaves these states meanwhile moves others to a page that was read: these are missed, until the next
        time. One that is on two pages comes once.
        """
        since = None if create_since is None else f"{create_since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        options = {"state": ",".join(states), "sort_key": "create_time", "sort_dir": "asc", "create_since": since}
        seen = set[str]()
        offset = 0
        while True:
            found = self._ask("ListSmartLiveJobs", offset=offset, limit=PAGE, **options).get("smart_live_jobs") or []
            if not isinstance(found, list) or not all(isinstance(one, dict) and one.get("job_id") for one in found):
                raise _malformed("ListSmartLiveJobs")
            new = {str(one["job_id"]): one for one in found if str(one["job_id"]) not in seen}
            yield from new.values()
            seen |= new.keys()
            offset += len(found)
            if len(found) < PAGE or not new:
                return

    def _ask(self, operation: str, **parameters: Any) -> Json:  # noqa: ANN401 (the request's)
        for pause in (*_PAUSES, None):
            self._wait_for_turn()
            try:
                return self._ask_once(operation, parameters)
            except PlatformError as error:
                if pause is None or not error.is_passing:
                    raise
            self._sleep(pause)
        raise AssertionError

    def _ask_once(self, operation: str, parameters: Json) -> Json:
        request = getattr(self._sdk.requests, f"{operation}Request")(**parameters)
        method = getattr(self._sdk.client, _snake(operation))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that are not of the published types
                response = method(request)
            if response.status_code >= _REDIRECTS:
                raise _redirected(operation, response.status_code)
            # A query without an answer is none of an empty configuration: all that is there would be overwritten.
            answer = {} if "body" in parameters else json.loads(response.raw_content)
        except self._sdk.exceptions.SdkException as error:
            status = getattr(error, "status_code", None)
            raise (self._unreachable(operation, error) if status is None else _refused(operation, error)) from error
        except OSError as error:  # of which the SDK lets some pass, as they come from the library below it
            raise self._unreachable(operation, error) from error
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise _malformed(operation) from error
        if not isinstance(answer, dict):
            raise _malformed(operation)
        return answer

    def _unreachable(self, operation: str, error: Exception) -> PlatformError:
        remedy = "see that --region or --api-endpoint is right, and that this machine may call out to it"
        problem = f"the platform cannot be reached at {self._sdk.endpoint} ({type(error).__name__})"
        return PlatformError(f"{operation}: {problem}: {remedy}", is_passing=True)

    def _wait_for_turn(self) -> None:
        wait = self._asked_at + _PACE - self._clock()
        if wait > 0:
            self._sleep(wait)
        self._asked_at = self._clock()


def _refused(operation: str, error: Any) -> PlatformError:  # noqa: ANN401 (the SDK has no types)
    status = error.status_code
    # Its own text is left out: nobody knows whether it quotes the request.
    code = "" if error.error_code in (None, "", str(status)) else f" {error.error_code}"
    said = f"{status}{code}" + (f", request {error.request_id}" if error.request_id else "")
    is_passing = status == _TOO_MANY or status >= _SERVER_ERROR or error.error_code == _TOO_MANY_CODE
    if is_passing:
        what = "says that there are too many requests" if status < _SERVER_ERROR else "fails"
        remedy = f"the platform {what}, also when it was asked {len(_PAUSES)} times more: try later"
    elif status == _UNAUTHORIZED:
        remedy = (
            "the platform refuses the credentials: see that HUAWEICLOUD_SDK_AK, _SK and _SECURITY_TOKEN (or the"
            " profile) are of the right account and still valid, and that this machine's clock is right"
        )
    elif status == _FORBIDDEN:
        remedy = (
            f"these credentials have no permission for {operation}: let an administrator grant their user, or the"
            " machine's agency, MetaStudio's permission for it, in this project"
        )
    elif status == _NOT_FOUND:
        remedy = "the platform knows no such thing: see that the id, the project and the region are right"
    else:
        remedy = "the platform refuses the request"
    return PlatformError(f"{operation}: {remedy} ({said})", status=status, is_passing=is_passing)


def _redirected(operation: str, status: int) -> PlatformError:
    return PlatformError(f"{operation}: is redirected ({status}), which is not followed: see --api-endpoint")


def _malformed(operation: str) -> PlatformError:
    return PlatformError(f"{operation}: the platform's answer is not of the published form; see --api-endpoint")


def _snake(operation: str) -> str:
    return "".join(f"_{one.lower()}" if one.isupper() else one for one in operation).removeprefix("_")
