"""Runs targets on generated cases and on the corpus; what fails is made small, and kept in the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.fuzz.generate import Case
from tests.fuzz.targets import Target

CORPUS = Path(__file__).parent / "corpus"
_RIGHT = "right-"
_MOST_TRIES = 400  # to make one case smaller
_KIND = 35  # characters by which two problems are told to be of one kind


class Failure(NamedTuple):
    """A case in which an invariant does not hold, and how."""

    folder: str
    case: Case
    problem: str

    @property
    def file(self) -> Path:
        """Where it is kept."""
        digest = hashlib.sha256(self.case.data).hexdigest()[:12]
        return CORPUS / self.folder / f"{_RIGHT if self.case.is_right else ''}{digest}"

    def keep(self) -> Path:
        """Write it into the corpus."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(self.case.data)
        return self.file


def corpus(name: str) -> Iterator[Case]:
    """The cases that were kept for a target."""
    for file in sorted((CORPUS / name).glob("*")):
        yield Case(file.read_bytes(), file.name.startswith(_RIGHT))


def problem_of(target: Target, case: Case) -> str | None:
    """What is wrong about how a case went, if anything is."""
    try:
        target.run(case)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what is looked for)
        return f"{type(error).__name__}: {error}"
    return None


def fuzz(target: Target, random: Random) -> Failure | None:
    """Run one new case."""
    case = target.generate(random)
    problem = problem_of(target, case)
    if problem is None:
        return None
    if target.is_repeatable:
        kind = problem[:_KIND]
        case = smaller(case, lambda one: (problem_of(target, one) or "")[:_KIND] == kind)
    return Failure(target.folder, case, problem)


def smaller(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A case from which pieces are cut for as long as it fails; one that has to be right is kept whole."""
    tries, size = 0, len(case.data) // 2
    while size and not case.is_right and tries < _MOST_TRIES:
        at = 0
        while at < len(case.data) and tries < _MOST_TRIES:
            shorter = Case(case.data[:at] + case.data[at + size :], is_right=False)
            tries += 1
            if fails(shorter):
                case = shorter
            else:
                at += size
        size //= 2
    return case
