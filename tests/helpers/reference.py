"""Writes the tables of settings in docs/reference/settings.md from their declarations.

Run as `python -m tests.helpers.reference`, after a change in receiver/settings/settings.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from receiver.settings.declaration import declared, variable, written
from receiver.settings.settings import EndpointSettings, Settings

PAGE = Path(__file__).parents[2] / "docs/reference/settings.md"
COMMAND = "python -m tests.helpers.reference"
_BEGIN, _END = f"<!-- begin: written by `{COMMAND}` -->\n", "<!-- end -->\n"
_HEADINGS = {EndpointSettings: "Of an endpoint", Settings: "Of the process"}


def rewritten(page: str) -> str:
    """The page with the tables as the declarations have them."""
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    tables = "\n".join(f"### {heading}\n\n{_table(settings)}" for settings, heading in _HEADINGS.items())
    return f"{before}{_BEGIN}\n{tables}\n{_END}{after}"


def _table(settings: type) -> str:
    rows = [
        f"| `{name}` | `{variable(name)}` | {_default(setting.default)} | {setting.meaning} |\n"
        for name, setting in declared(settings).items()
    ]
    return "| setting | variable | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _default(value: object) -> str:
    if value in ("", None, ()):
        return "none"
    as_written = written(value)
    return f"`{as_written if isinstance(as_written, str) else json.dumps(as_written)}`"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
