"""The vendor's SDK is loaded by the commands that ask the platform, and by nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = "import sys; sys.exit(any(name.startswith('huaweicloud') for name in sys.modules))"


@pytest.mark.parametrize("module", ["receiver.cli", "receiver.app", "receiver.projector.worker"])
def test_serve_does_not_load_it(module: str) -> None:
    """Neither the command line with all commands, nor either process of `serve`, imports the SDK."""
    assert subprocess.run([sys.executable, "-c", f"import {module}; {LOADED}"], check=False).returncode == 0


def test_without_it() -> None:
    """Where it is not installed, the commands say what to install, and all others work."""
    missing = "import sys; sys.modules['huaweicloudsdkcore'] = None; from receiver.cli import main; main()"
    environ = {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": "https://events.example.com/", "RECEIVER_KEY": "k" * 32}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", missing, *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environ)

    done = run("register", "--region", "cn-north-4")
    assert (done.returncode, "deploy/requirements-platform.txt" in done.stderr) == (1, True)
    assert run("config").returncode == 0
