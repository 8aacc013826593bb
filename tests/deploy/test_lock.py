"""The lock files: what CI, `make` and the container install, to the byte; and that `make` installs just that."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.locks import BUILD, DEVELOPMENT, PLATFORM, ROOT, RUNTIME, pins

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def asked(group: str) -> Iterator[Requirement]:
    """What a dependency group of pyproject.toml asks for, with the groups that it includes."""
    for one in PROJECT["dependency-groups"][group]:
        if isinstance(one, dict):
            yield from asked(one["include-group"])
        else:
            yield Requirement(one)


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        (RUNTIME, [Requirement(one) for one in PROJECT["project"]["dependencies"]]),
        (BUILD, [*asked("build"), *map(Requirement, PROJECT["build-system"]["requires"])]),
        (PLATFORM, [Requirement(one) for one in PROJECT["project"]["optional-dependencies"]["platform"]]),
        (DEVELOPMENT, [*asked("dev")]),
    ],
    ids=["runtime", "build", "platform", "development"],
)
def test_lock_is_in_step(lock: str, requirements: list[Requirement]) -> None:
    """A lock file pins, with hashes, a version of each thing that pyproject.toml asks for: if not, run `make lock`."""
    pinned = pins(lock)
    assert requirements
    for requirement in requirements:
        version, _ = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is pinned"
    assert [name for name, (_, hashes) in pinned.items() if not hashes] == []


def test_locks_agree() -> None:
    """What is in more than one lock file has the same version in each, so that tests run on what is shipped."""
    development = pins(DEVELOPMENT)
    shared = pins(RUNTIME) | pins(BUILD) | pins(PLATFORM)
    differing = {name for name, pin in shared.items() if development.get(name, pin) != pin}
    assert differing == set()


def test_platform_is_locked_as_the_extra() -> None:
    """The group from which the lock file is made asks for the same as the extra that users install."""
    assert PROJECT["dependency-groups"]["platform"] == PROJECT["project"]["optional-dependencies"]["platform"]


# Builds nothing: the wheel is there already.
BACKEND = """
import shutil
def build_editable(folder, config_settings=None, metadata_directory=None):
    return shutil.copy("project-1-py3-none-any.whl", folder).rpartition("/")[2]
"""


def wheel(folder: Path, name: str, version: str, *metadata: str) -> str:
    """Make an empty package's wheel in `folder`; returns the line that pins it in a lock file."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    files = {
        "METADATA": "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""]),
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as file:
        for one, text in files.items():
            file.writestr(f"{name}-{version}.dist-info/{one}", text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def project(folder: Path) -> Path:
    """A project with this one's Makefile, and a newer version than is locked of what is asked for with an extra.

    Returns the folder of the wheels that can be had.
    """
    index = folder / "index"
    for one in (index, folder / "deploy", folder / ".ci"):
        one.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    build_system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (folder / "pyproject.toml").write_text(build_system)
    (folder / "backend.py").write_text(BACKEND)
    wheel(folder, "project", "1", "Requires-Dist: asking")
    for lock, suffix in ((RUNTIME, ""), (DEVELOPMENT, "too")):
        locked = [
            wheel(index, f"asked{suffix}", "1", "Provides-Extra: extra"),
            wheel(index, f"asking{suffix}", "1", f"Requires-Dist: asked{suffix}[extra]"),
        ]
        (folder / lock).write_text("".join(locked))
        wheel(index, f"asked{suffix}", "2", "Provides-Extra: extra")
    (folder / BUILD).write_text("")
    return index


def test_what_make_installs(tmp_path: Path) -> None:
    """`make` installs what is locked though something newer can be had, and repairs a half-made environment."""
    index = project(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))} | pip
    command = ["make", ".venv/developed"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = {path.stem for path in tmp_path.glob(".venv/lib/*/site-packages/ask*.dist-info")}
    assert installed == {"asked-1", "asking-1", "askedtoo-1", "askingtoo-1"}
