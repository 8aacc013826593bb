"""The lock files, as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
RUNTIME, BUILD, DEVELOPMENT = "deploy/requirements.txt", "deploy/build-requirements.txt", ".ci/requirements.txt"
PLATFORM = "deploy/requirements-platform.txt"  # what is added for the extra


def pins(lock: str) -> dict[str, tuple[str, int]]:
    """The version of each package that a lock file has for this platform, and how many hashes it may have."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found: dict[str, tuple[str, int]] = {}
    for line in lines:
        pin, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        requirement = Requirement(pin)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = (specifier.version, len(hashes))
    return found
