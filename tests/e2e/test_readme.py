"""A new user's way: a fresh clone, the commands of README and docs/how-to/check.md as they stand there, in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from tests.helpers.pages import ROOT, Block, blocks
from tests.helpers.receiver import free_port, wait_until
from tests.helpers.shell import run


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
    serve, *others = blocks("README.md", language="bash")
    assert serve.text == "make run\n"
    out = tmp_path / "out"
    with out.open("wb") as file:
        server = subprocess.Popen(
            serve.text.split(),
            cwd=tmp_path,
            env=environ,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches all of it, as in a terminal
        )
    try:
        wait_until(lambda: "make demo" in out.read_text() or server.poll() is not None, "make run", 300)

        def here(block: Block) -> str:
            return run(block.text.replace("8443", port), tmp_path, environ)

        demo, history, registration = map(here, others)
        check, query = blocks("docs/how-to/check.md", language="bash")
        checked = here(check)
        # The page says "a second later".
        rows = wait_until(lambda: found if (found := here(query)).count("\n") == 5 else "", "the samples' rows")
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(60)
    assert '29 answered 200 {"status":"accepted"}' in demo
    assert "29 events of job" in demo
    assert "春季新茶 · 1 开场介绍" in demo
    config = json.loads(registration)["live_event_callback_config"]
    assert f'key = "{config["key"]}"' in (tmp_path / "receiver.toml").read_text()
    assert re.search(r"END +\d{4}-\d\d-\d\d", history)
    assert checked == '{"status":"accepted"}\n' * 3
    assert re.search(r"Product 1 +2 +Paragraph 2", rows)


def test_make_without_venv(tmp_path: Path) -> None:
    """Where Python has no venv, which leaves half of one behind, make says what to install; afterwards it works."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    debians = tmp_path / "python-without-venv"
    debians.write_text(
        '#!/bin/sh\nif [ "$1" != -m ]; then exec python3 "$@"; fi\nmkdir -p .venv/bin\n'
        "ln -sf /nowhere .venv/bin/python3\necho 'ensurepip is not available'\nexit 1\n"
    )
    debians.chmod(0o755)
    for _ in range(2):
        said = run(f"make PYTHON={debians} .venv/created", tmp_path, exit_code=2)
        assert "apt install python3-venv" in said
        assert not (tmp_path / ".venv/created").exists()
    run("make .venv/created", tmp_path)
    assert (tmp_path / ".venv/bin/pip").exists()
