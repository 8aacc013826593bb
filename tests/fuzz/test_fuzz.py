"""Fuzzing in the gate: the corpus, and so many new cases from a fixed seed. `make fuzz` runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.http import in_process, over_proxy, over_sockets
from tests.fuzz.loop import corpus, fuzz, problem_of
from tests.fuzz.oracle import Registration, judge, secrets
from tests.fuzz.targets import PURE, Target
from tests.helpers.quick import computes

CASES = 10_000  # of the cheapest target; of the others, fewer by what they cost
SEED = "of the gate"


def run(target: Target) -> None:
    """The cases that were kept, then new ones."""
    for case in corpus(target.folder):
        assert problem_of(target, case) is None, case
    random = Random(SEED)
    for _ in range(CASES // target.cost):
        assert (failure := fuzz(target, random)) is None, failure


@pytest.mark.parametrize("target", PURE, ids=[target.name for target in PURE])
def test_by_itself(target: Target) -> None:
    """What takes bytes from outside raises its own errors alone, and agrees with the oracle."""
    computes()
    run(target)


@pytest.fixture
def http() -> Iterator[Target]:
    with in_process() as target:
        yield target


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Target]:
    with over_sockets(tmp_path) as target:
        yield target


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_through_a_proxy(tmp_path: Path, name: str) -> None:
    """The same through the shipped proxies; and what is right is answered 200, whatever headers it has."""
    with over_proxy(tmp_path, name) as target:
        run(target)


@pytest.mark.parametrize("kind", ["http", "served"])
def test_http(kind: str, request: pytest.FixtureRequest) -> None:
    """What is answered 200 was signed right, and is stored with exactly the bytes that were sent; nothing else is."""
    run(request.getfixturevalue(kind))


def test_the_oracle_reproduces_the_published_example() -> None:
    """The oracle, which knows nothing of the receiver, gives the signature of the vendor's own example."""
    platform = Registration(
        "platform",
        "https://api.example.com/v1/products?live_id=111&limit=10&offset=0",
        "MSS_A_HEAD",
        ("GCTbw44s6MPLh4GqgDpnfuFHgy25Enly",),
    )
    secret = "5e7fe8869a12a87ea966d9edbc02e38cd4ce62c73b8b05c638f15835e78902d7"
    assert secret in secrets(platform, "66df9308")
    headers = [(b"x-hw-mss-secret", secret.encode()), (b"x-hw-mss-time", b"66df9308")]
    now = int("66df9308", 16)
    assert judge(platform, b"limit=10&live_id=111&offset=0", headers, now + 60, 60) == "accepted"
    assert judge(platform, b"limit=10&live_id=111&offset=0", headers, now + 61, 60) == "stale"
    assert judge(platform, b"limit=10&live_id=112&offset=0", headers, now, 60) == "rejected"
    language_model = Registration("llm", "https://metastudio-llm/digital-human/chat", "MSS_A", ("huawei_metaStudio",))
    secret = "a02fc32111795dc6f760e6bd15bb0cbc9a35921dc5dc86e57eea56ae644d793e"
    assert judge(language_model, f"hwSecret={secret}&hwTime=1963307d486".encode(), [], 1744612873, 300) == "accepted"
