"""The lock files: what CI, `make` and the container install, to the byte."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.locks import BUILD, DEVELOPMENT, ROOT, RUNTIME, pins

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
        (DEVELOPMENT, [*asked("dev")]),
    ],
    ids=["runtime", "build", "development"],
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
    shared = pins(RUNTIME) | pins(BUILD)
    differing = {name for name, pin in shared.items() if development.get(name, pin) != pin}
    assert differing == set()
