"""A new user's way: a fresh clone, the README's commands as they stand there, in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from receiver.cli import main
from receiver.metrics import REJECTIONS
from receiver.protocol.events import Reason
from receiver.settings import settings
from tests.helpers.receiver import free_port, wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def clone(folder: Path) -> None:
    """Put what git would have into `folder`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def test_every_command_of_the_readme(tmp_path: Path) -> None:
    """In a fresh clone `make run` serves, and each further command block does what the text says."""
    clone(tmp_path)
    port = str(free_port())
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "RECEIVER_"))} | {
        "RECEIVER_LISTEN": f"127.0.0.1:{port}",
        "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{free_port()}",
        "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": f"https://localhost:{port}/callbacks/metastudio",
    }
    serve, *others = BLOCKS
    assert serve == "make run\n"
    out = tmp_path / "out"
    with out.open("wb") as file:
        server = subprocess.Popen(
            serve.split(),
            cwd=tmp_path,
            env=environ,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches all of it, as in a terminal
        )
    try:
        wait_until(lambda: "make demo" in out.read_text() or server.poll() is not None, "make run", 300)

        def run(block: str) -> str:
            command = ["bash", "-euo", "pipefail", "-c", block.replace("8443", port)]
            done = subprocess.run(command, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True)
            return done.stdout

        demo, registration, curl = map(run, others[:-1])
        # The text says "a second later".
        rows = wait_until(lambda: found if (found := run(others[-1])).count("\n") == 5 else "", "the samples' rows")
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(60)
    assert '29 answered 200 {"status":"accepted"}' in demo
    assert "29 events of job" in demo
    assert "春季新茶 · 1 开场介绍" in demo
    config = json.loads(registration)["live_event_callback_config"]
    assert f'key = "{config["key"]}"' in (tmp_path / "receiver.toml").read_text()
    assert curl == '{"status":"accepted"}\n' * 3
    assert re.search(r"Product 1 +2 +Paragraph 2", rows)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`receiver ((?:[a-z]+ ?)+)", README))))
def test_every_command_has_help(command: str) -> None:
    """Each command that the README names exists and explains itself."""
    result = CliRunner().invoke(main, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 100


def test_settings_reasons_and_metrics_are_documented() -> None:
    """Every setting, reason and metric stands in the README."""
    names = [name for one in (settings.Settings, settings.EndpointSettings) for name in one.__slots__]
    for name in [*names, "key_file", *REJECTIONS, *Reason]:
        assert name in ("endpoints", "name") or f"`{name}`" in README, name
