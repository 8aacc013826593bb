from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from receiver.cli import main
from receiver.settings.declaration import Setting, declared, variable
from receiver.settings.load import load
from receiver.settings.parsers import InvalidValueError
from receiver.settings.settings import EndpointSettings, Settings
from tests.helpers.configuration import toml, write

SETTINGS = declared(EndpointSettings) | declared(Settings)
# A value of every kind: each setting takes the first that its parser takes. "sample" is a file too, with a key in it,
# and "url" one with a database's URL.
VALUES = (
    "sample",
    "url",
    "4194304",
    "MSS_A_HEAD",
    "host-sorted-hex",
    "127.0.0.1:1",
    "10.0.0.0/8",
    "https://sample.example/c",
    "sqlite:///sample.db",
    "true",
    "false",
    "sample.example",
)


@pytest.fixture
def samples(folder: Path) -> dict[str, str]:
    """A value for each declared setting that is not its default."""
    (folder / "sample").write_text("key in a file")
    (folder / "url").write_text("sqlite:///in-a-file.db\n")
    return {name: sample(setting) for name, setting in SETTINGS.items()}


def sample(setting: Setting) -> str:
    for value in VALUES:
        try:
            if setting.parse(value) != setting.default:
                return value
        except InvalidValueError:
            continue
    raise AssertionError(f"{setting}: no sample fits: add one to VALUES")


def without_siblings(name: str, samples: dict[str, str]) -> dict[str, str]:
    """One sample for each field, the named setting's among them: key and key_file exclude each other."""
    chosen = {SETTINGS[one].field: one for one in (*samples, name)}
    return {one: samples[one] for one in chosen.values()}


def in_force(settings: Settings, setting: Setting) -> Any:
    return getattr(settings if hasattr(settings, setting.field) else settings.endpoints[0], setting.field)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_loaded_from_the_file_and_from_the_environment(name: str, samples: dict[str, str]) -> None:
    """What is declared is read from the file by its name, and from the environment by its variable."""
    given = without_siblings(name, samples)
    expected = SETTINGS[name].parse(samples[name])

    assert in_force(load(write(toml(given)), {}), SETTINGS[name]) == expected
    assert in_force(load(None, {variable(one): value for one, value in given.items()}), SETTINGS[name]) == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_receiver_config(name: str, samples: dict[str, str]) -> None:
    """`receiver config` shows each field that settings fill, and no secret."""
    given = without_siblings(name, samples)
    output = CliRunner().invoke(main, ["--config", str(write(toml(given))), "config"]).stdout
    shown = dict(line.split(" = ") for line in output.splitlines())
    field = SETTINGS[name].field

    assert shown[field if name in declared(Settings) else f"endpoints.default.{field}"] not in ('""', "[]")


@pytest.mark.parametrize("settings", [EndpointSettings, Settings])
def test_what_is_masked_is_not_in_the_representation(settings: type) -> None:
    """A secret has a mask, and with it stays out of logs and tracebacks."""
    masked = {one.name for one in fields(settings) if one.metadata.get("mask")}

    assert masked
    assert not any(one.repr for one in fields(settings) if one.name in masked)
