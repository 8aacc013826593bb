"""The caddy that deploy/compose.yaml ships, from its wheel; Debian's older one is `caddy`."""

from __future__ import annotations

import sys
from pathlib import Path

CADDY = str(Path(sys.prefix) / "bin/caddy")
