"""Settings for the tests of the settings: keys, files and variables, and what every refusal promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SECRET = "s3cr3t"  # in every value that no message may show
KEY = f"{SECRET} of the registration"
PREVIOUS_KEY = f"{SECRET} before it"
ENDPOINTS = f"""
listen = "127.0.0.1:1"

[[endpoints]]
name = "spring"
live_event_type_callback_url = "https://h/spring"
key = "{KEY}"
previous_key = "{PREVIOUS_KEY}"

[[endpoints]]
name = "Autumn_2-b"
live_event_type_callback_url = "https://other:8443/autumn?room=1"
auth_type = "MSS_A_HEAD"
key_file = "key"
signature_form = "host-sorted-hex"
timestamp_tolerance = 60

[[endpoints]]
name = "winter"
live_event_type_callback_url = "https://h/{SECRET}0123456789"
auth_type = "NONE"
"""


def write(text: str, name: str = "settings.toml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def toml(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def variable(setting: str) -> str:
    return f"RECEIVER_{setting.upper()}"


def make(path: Path, content: Any) -> None:
    """A file that holds `content`; a folder for `...`, nothing for None."""
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)


def refused(message: str, setting: str, remedy: str) -> None:
    """Check what every refusal promises."""
    assert message.startswith(f"{setting}: ")
    assert remedy in message
    assert len(message.splitlines()) == 1
    assert SECRET not in message
