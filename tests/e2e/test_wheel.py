"""The wheel works alone."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.helpers.pages import ROOT
from tests.helpers.receiver import free_port, wait_until


def test_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    """Installed from the wheel, with nothing of the project beside it, init, serve with its page, and simulate work."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "RECEIVER_"))}

    def run(*command: str, cwd: Path = tmp_path) -> str:
        done = subprocess.run(command, cwd=cwd, env=environ, check=True, capture_output=True, text=True)
        return done.stdout

    locked = ("--no-deps", "--require-hashes", "--requirement", str(ROOT / "deploy/requirements.txt"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "venv")
    bin_folder = tmp_path / "venv/bin"
    run(str(bin_folder / "pip"), "install", "--quiet", *locked)
    # Fails where the lock file lacks something that the wheel needs.
    run(str(bin_folder / "pip"), "install", "--quiet", "--no-index", str(wheel))
    receiver = str(bin_folder / "receiver")
    empty = tmp_path / "empty"
    empty.mkdir()
    port = free_port()
    url = f"https://localhost:{port}/callbacks/metastudio"
    assert "Next: receiver serve" in run(receiver, "init", "--url", url, cwd=empty)
    environ |= {
        "RECEIVER_LISTEN": f"127.0.0.1:{port}",
        "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{free_port()}",
    }
    out = empty / "out"
    with out.open("wb") as file:
        server = subprocess.Popen([receiver, "serve"], cwd=empty, env=environ, stdout=file, stderr=file)
    try:
        wait_until(lambda: "receiver simulate" in out.read_text() or server.poll() is not None, "the receiver")
        assert "29 events of job" in run(receiver, "simulate", cwd=empty)
        with urllib.request.urlopen(f"http://{environ['RECEIVER_OPERATIONS_LISTEN']}/", timeout=60) as page:
            assert "Callbacks are taken" in page.read().decode()
    finally:
        server.terminate()
    assert server.wait(60) == 0
