"""`make fuzz`: fuzz for FUZZ_SECONDS, or for FUZZ_CASES of the cheapest target; FUZZ_SEED repeats a run."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random, SystemRandom

import click

from tests.fuzz.http import in_process, over_proxy, over_sockets
from tests.fuzz.loop import Failure, fuzz
from tests.fuzz.targets import PURE

_ROUND = 50  # cases of the cheapest target between two looks at the clock
_REPORT_SECONDS = 30
_MOST_FAILURES = 50


def main() -> int:
    """Fuzz, and say how many cases there were, and what was found."""
    seed = int(os.environ.get("FUZZ_SEED") or SystemRandom().getrandbits(32))
    most = int(os.environ.get("FUZZ_CASES") or 0)
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS") or (60 if not most else 1e9))
    counts: Counter[str] = Counter()
    failures: dict[str, Failure] = {}
    click.echo(f"FUZZ_SEED={seed}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        http = [in_process(), over_sockets(folder), *(over_proxy(folder, name) for name in ("nginx", "caddy"))]
        targets = [*PURE, *map(stack.enter_context, http)]
        randoms = {target.name: Random(f"{seed} {target.name}") for target in targets}
        reported = time.monotonic()
        while time.monotonic() < end and not 0 < most <= counts[PURE[0].name] and len(failures) < _MOST_FAILURES:
            for target in targets:
                for _ in range(max(1, _ROUND // target.cost)):
                    counts[target.name] += 1
                    failure = fuzz(target, randoms[target.name])
                    if failure is not None and failure.problem not in failures:
                        failures[failure.problem] = failure
                        click.echo(f"{failure.keep()}: {failure.problem}")
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                click.echo(_said(counts, failures))
        click.echo(_said(counts, failures))
    return 1 if failures else 0


def _said(counts: Counter[str], failures: dict[str, Failure]) -> str:
    each = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{counts.total()} cases ({each}); {len(failures)} findings"


if __name__ == "__main__":
    sys.exit(main())
