from __future__ import annotations

import re
from pathlib import Path

import pytest

from receiver.settings.declaration import declared, variable
from receiver.settings.load import SettingsError, load
from receiver.settings.settings import EndpointSettings, Settings
from tests.helpers.configuration import KEY, write
from tests.helpers.pages import blocks
from tests.helpers.reference import COMMAND, PAGE, rewritten


def test_the_reference_is_what_the_declarations_say() -> None:
    """The tables of docs/reference/settings.md are those of the declarations: the command rewrites them."""
    page = PAGE.read_text(encoding="utf-8")

    assert page == rewritten(page), f"run: {COMMAND}"


def test_every_setting_is_in_the_reference() -> None:
    """Each declared setting has a row with its variable and its meaning, one plain sentence."""
    page = PAGE.read_text(encoding="utf-8")
    for name, setting in (declared(EndpointSettings) | declared(Settings)).items():
        assert setting.meaning.endswith(".")
        assert f"\n| `{name}` | `{variable(name)}` | " in page
        assert f" | {setting.meaning} |\n" in page


def test_every_example_is_loaded(folder: Path) -> None:
    """Each file that the page shows is one that the receiver starts with, given its key files."""
    (folder / "key").write_text(KEY)
    examples = [block.text for block in blocks("docs/reference/settings.md", language="toml")]

    loaded = [load(write(re.sub(r'key_file = ".*"', 'key_file = "key"', one)), {}) for one in examples]

    assert [len(settings.endpoints) for settings in loaded] == [1, 2]


@pytest.mark.parametrize(
    "environ", [{"RECEIVER_LISTEN": "8443"}, {"RECEIVER_CONFIG": "settings.toml"}, {"RECEIVER_PREVIUS_KEY": "x"}]
)
def test_every_error_is_what_is_said(environ: dict[str, str]) -> None:
    """The page shows errors as the receiver says them."""
    write('previus_key = "x"')
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": KEY} | environ)

    (block,) = blocks("docs/reference/settings.md", language="text")
    assert f"Error: {caught.value}\n" in block.text
