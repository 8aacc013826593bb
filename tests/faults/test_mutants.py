"""The mutants keep up with the code: `make mutants`, which takes half an hour, is not needed to see that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_patterns_match(mutant: Mutant) -> None:
    """What a mutant changes is once in its file, and the tests that must notice are there."""
    texts = {change.file: (ROOT / change.file).read_text() for change in mutant.changes}
    before = dict(texts)
    for change in mutant.changes:
        texts[change.file] = change.applied(texts[change.file])
    assert all(texts[file] != before[file] for file in texts)
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name or 'test_'}", (ROOT / file).read_text(), flags=re.MULTILINE), test
