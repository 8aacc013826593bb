"""`receiver register`, with the vendor's SDK, against a stub of the platform that checks signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from receiver.cli import main
from tests.helpers.platform import ACCESS_KEY, SECRET_KEY, Answer, Request, Stub, failure, platform

URL = "https://events.example.com/callbacks/metastudio"
KEY = "0123456789abcdefThis-Is-The-Key"
OTHER_KEY = "another-key-that-is-registered"
WANTED = {
    "live_event_type_callback_url": URL,
    "auth_type": "MSS_A",
    "key": KEY,
    "callback_event_type": ["SHOOT_SCRIPT_SWITCH", "RTMP_STREAM_STATE_CHANGE", "REPLY_COMMAND_FINISH"],
}
# With a field of each part that the SDK's classes do not know.
REST = {
    "live_exit_config": {"max_exception_waiting_duration": 7, "of_a_newer_version": True},
    "live_notify_config": {"notify_events": ["AUTO_EXIT"]},
    "a_newer_part": {"size": 1.5},
}
Register = Callable[..., Result]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with platform() as started:
        yield started


@pytest.fixture
def register(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """The command, for the stub, with no secret in what it says."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environ: str) -> Result:
        settings = {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL, "RECEIVER_KEY": KEY}
        command = ["register", "--api-endpoint", stub.url, *arguments]
        result = CliRunner().invoke(main, command, env=stub.environ | settings | environ)
        assert "Traceback" not in result.output
        for secret in (KEY, OTHER_KEY, ACCESS_KEY, SECRET_KEY):
            assert secret not in result.output
        return result

    return run


def written(stub: Stub) -> list[Any]:
    """The bodies that were written."""
    return [one.body for one in stub.requests if one.method == "PUT"]


def test_nothing_is_registered_yet(stub: Stub, register: Register) -> None:
    """For a tenant without configuration all of it would change; nothing does without --apply."""
    result = register()
    assert result.exit_code == 0
    assert f"live_event_type_callback_url: not set -> {URL}" in result.output
    assert "key: not set -> ****" in result.output
    assert "give --apply" in result.output
    assert written(stub) == []
    assert register("--apply").exit_code == 0
    assert stub.config == {"live_event_callback_config": WANTED}


def test_all_else_stays_as_it_was_read(stub: Stub, register: Register) -> None:
    """What is written has every other part as it was, also what the SDK does not know of."""
    other = WANTED | {"live_event_type_callback_url": "https://old.example.com/?token=s3cret", "key": OTHER_KEY}
    stub.config = REST | {"live_event_callback_config": other | {"a_newer_field": 1}}
    result = register("--apply")
    assert result.exit_code == 0, result.output
    assert "https://old.example.com/?**** -> https://events" in result.output
    assert "s3cret" not in result.output
    assert "key: **** -> another one" in result.output
    assert "nothing else has changed" in result.output
    assert stub.config == REST | {"live_event_callback_config": WANTED | {"a_newer_field": 1}}
    assert [one.method for one in stub.requests] == ["GET", "PUT", "GET"]
    assert "is registered so already" in register("--apply").output
    assert len(written(stub)) == 1


def test_a_masked_key(stub: Stub, register: Register) -> None:
    """Of a key that the platform masks it is said that it cannot be compared; --apply writes it again."""
    stub.masks_key = True
    stub.config = {"live_event_callback_config": WANTED | {"key": OTHER_KEY}}
    assert "key: masked by the platform, so that it cannot be compared" in register().output
    result = register("--apply")
    assert (result.exit_code, stub.config["live_event_callback_config"]["key"]) == (0, KEY)


def test_another_part_that_is_masked(stub: Stub, register: Register) -> None:
    """What is masked in another part would be lost when it is written back: nothing is written."""
    stub.config = REST | {"a_newer_part": {"token": "ab****yz"}}
    result = register("--apply")
    assert (result.exit_code, written(stub)) == (1, [])
    assert "a_newer_part.token" in result.output


def test_a_platform_that_drops_a_part(stub: Stub, register: Register) -> None:
    """Where anything else has changed it fails, and says what it was."""
    stub.config = dict(REST)
    stub.drops = ("live_exit_config",)
    result = register("--apply")
    assert result.exit_code == 1
    assert "changed something else: live_exit_config; live_exit_config was {'max_exc" in result.output
    assert ", is None" in result.output


def test_a_platform_that_does_not_keep_it(stub: Stub, register: Register) -> None:
    """Where the registration is not there afterwards it fails."""
    stub.drops = ("live_event_callback_config",)
    result = register("--apply")
    assert result.exit_code == 1
    assert "does not have it: live_event_type_callback_url, auth_type, key" in result.output


def test_a_room(stub: Stub, register: Register) -> None:
    """A room's own registration is compared and never written."""
    stub.rooms["r1"] = {"live_event_callback_config": WANTED | {"is_inheritance_platform_callback": False}}
    result = register("--room", "r1")
    assert result.exit_code == 0
    assert "of room r1, compared with the endpoint default" in result.output
    assert "is registered so already" in result.output
    assert "is_inheritance_platform_callback: False" in result.output
    assert register("--room", "r1", "--apply").exit_code == 2
    assert register("--room", "../../user-config").exit_code == 2
    assert "knows no such thing" in register("--room", "r2").output
    assert written(stub) == []
    stub.rooms["r3"] = {"live_event_callback_config": ["of", "another", "form"]}
    assert f"live_event_type_callback_url: not set -> {URL}" in register("--room", "r3").output


def test_a_large_answer(stub: Stub, register: Register) -> None:
    """A configuration of many megabytes is compared like any other, and is not printed."""
    stub.config = REST | {"live_event_callback_config": WANTED | {"callback_event_type": "X" * 10_000_000}}
    result = register()
    assert result.exit_code == 0
    assert "callback_event_type: XXX" in result.output
    assert len(result.output) < 5000


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost:8443/a",
        "https://127.0.0.1/a",
        "https://[::1]/a",
        "https://10.1.2.3/a",
        "https://a.localhost/",
    ],
)
def test_a_url_that_nobody_can_call(stub: Stub, register: Register, url: str) -> None:
    """A URL of this machine or network is refused before anything is asked."""
    result = register("--apply", RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL=url)
    assert (result.exit_code, stub.requests) == (1, [])
    assert "public name" in result.output


def test_several_endpoints(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several endpoints one has to be named, and it is that which is registered."""
    one = '[[endpoints]]\nname = "{0}"\nlive_event_type_callback_url = "https://example.com/{0}"\nkey = "{1}"\n'
    (tmp_path / "receiver.toml").write_text(one.format("spring", KEY) + one.format("autumn", OTHER_KEY))
    monkeypatch.chdir(tmp_path)
    command = ["register", "--api-endpoint", stub.url]
    result = CliRunner().invoke(main, command, env=stub.environ)
    assert result.exit_code == 2
    assert "name one of spring, autumn" in result.output
    result = CliRunner().invoke(main, [*command, "--apply", "--endpoint", "autumn"], env=stub.environ)
    assert result.exit_code == 0, result.output
    assert "the endpoint autumn" in result.output
    assert stub.config["live_event_callback_config"]["key"] == OTHER_KEY


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (failure(401, "APIGW.0301"), "refuses the credentials"),
        (failure(403, "APIGW.0302"), "no permission for ShowSmartLiveUserConfig"),
        (failure(400), "refuses the request (400 MSS.00000001, request request-of-the-stub)"),
        (Answer(200, b"<html>"), "not of the published form"),
        (Answer(200, b"[1]"), "not of the published form"),
        (Answer(200, b'{"live_exit_config": 5, "live_event_callback_config": '), "not of the published form"),
        (Answer(200, b""), "not of the published form"),
        (Answer(200, b"[" * 100_000), "not of the published form"),
        (Answer(200, b"<html>" * 2_000_000), "not of the published form"),
        (Answer(302, b""), "is redirected (302), which is not followed"),
        (Answer(308, {}), "is redirected (308), which is not followed"),
        (Answer(403, b"<html>"), "in this project (403, request request-of-the-stub)"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_the_platform_refuses(stub: Stub, register: Register, answer: Answer, said: str) -> None:
    """Each failure is one line with the remedy, in which nothing is quoted; nothing is tried again or written."""
    stub.before = lambda _: answer
    result = register("--apply")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert len(stub.requests) == 1


def test_too_many_requests(stub: Stub, register: Register) -> None:
    """After a 429 it waits, asks again, and goes on."""
    answers = [failure(429, "APIGW.0308")]

    def limit(_: Request) -> Answer | None:
        return answers.pop() if answers else None

    stub.before = limit
    assert register().exit_code == 0
    assert len(stub.requests) == 2


def test_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a region, with plain HTTP to elsewhere, or with an unknown region it says what to give."""
    environ = {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL, "RECEIVER_KEY": KEY}
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["register", *arguments], env=environ)
        assert result.exit_code == 2
        return result.output

    assert "--region: name the region" in said()
    assert "--api-endpoint: is not an https:// URL" in said("--api-endpoint", "http://example.com")
    assert "--region: name one of cn-east-3, cn-north-4" in said("--region", "mars")


@pytest.mark.parametrize(
    ("profile", "environ"),
    [
        (f"{SECRET_KEY}\n", {}),
        (f"[basic]\nak = {ACCESS_KEY}\nsk = %{SECRET_KEY}\n", {}),
        (f"[basic]\nak = {ACCESS_KEY}\nsk = {SECRET_KEY} \u4e2d\n", {}),
        ("", {"HUAWEICLOUD_SDK_AK": ACCESS_KEY, "HUAWEICLOUD_SDK_SK": f"{SECRET_KEY}\n"}),
    ],
    ids=["no profile", "a sign to be doubled", "another letter", "a line end"],
)
def test_credentials_that_cannot_be_read(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, environ: dict[str, str]
) -> None:
    """What is wrong with them is one line, in which none of them is quoted; the platform is not asked."""
    (tmp_path / ".huaweicloud").mkdir()
    (tmp_path / ".huaweicloud/credentials").write_text(profile)
    monkeypatch.chdir(tmp_path)
    settings = {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL, "RECEIVER_KEY": KEY, "HOME": str(tmp_path)}
    result = CliRunner().invoke(main, ["register", "--api-endpoint", stub.url], env=settings | environ)
    assert (result.exit_code, stub.requests) == (1, [])
    assert result.output.startswith("Error: the ")
    assert "profile" in result.output
    assert len(result.output.splitlines()) == 1
    assert not any(secret in result.output for secret in (SECRET_KEY, ACCESS_KEY))
