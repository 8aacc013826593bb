"""A real Prometheus with the shipped configuration, and what its HTTP API answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.helpers.receiver import free_port, wait_until

FOLDER = Path(__file__).parents[2] / "deploy/prometheus"
_METRIC = re.compile(r"(?<![:\w])metastudio_[a-z_]+(?![:\w])")
_RECORDED = re.compile(r"[a-z_]+:metastudio_[a-z_]+:[a-z0-9]+")

Labels = dict[str, str]


def names_in(expression: str) -> set[str]:
    """The receiver's metrics and the recorded series that an expression names."""
    return {*_METRIC.findall(expression), *_RECORDED.findall(expression)}


class QueryError(Exception):
    """A query that Prometheus refuses, with what it says."""


class Prometheus:
    """A server at `port` of loopback."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self._base}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    def query(self, expression: str, at: float | None = None) -> list[tuple[Labels, float]]:
        """The labels and value of each series, now or at a time in POSIX seconds."""
        found = self.get("query", query=expression, **({} if at is None else {"time": str(at)}))
        assert found["resultType"] == "vector", expression
        return [(sample["metric"], float(sample["value"][1])) for sample in found["result"]]

    def value(self, expression: str) -> float | None:
        """The one value of an expression, or None where it has none yet."""
        found = self.query(expression)
        return found[0][1] if found else None

    def get(self, what: str, **parameters: str) -> Any:
        """The data at a path of the API."""
        try:
            with urllib.request.urlopen(f"{self._base}/api/v1/{what}?{urlencode(parameters)}", timeout=60) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise QueryError(json.load(error)["error"]) from error

    def rules(self) -> list[dict[str, Any]]:
        """All rules as they are loaded, recording and alerting."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


def uncommented(text: str, first: str) -> str:
    """A configuration file's text with one of its examples taken in: the first whose commented line begins so."""
    lines = text.splitlines()
    begin = next(at for at, line in enumerate(lines) if re.match(rf" *# {first}", line))
    for at in range(begin, len(lines)):
        if not re.match(r" *# ", lines[at]):
            break
        lines[at] = lines[at].replace("# ", "", 1)
    return "\n".join(lines) + "\n"


def configure(folder: Path, operations_port: int, **others: str) -> Path:
    """The shipped configuration in `folder`, for a receiver at another port, and quick.

    `others` are the addresses of what else runs: `alertmanager`, or `exporter` (blackbox) and the `host` it asks.
    """
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    file = folder / "prometheus.yml"
    shipped = file.read_text()
    if "exporter" in others:
        shipped = uncommented(shipped, "- job_name: metastudio-public-url")
    replaced = {"interval: 10s": "interval: 1s", "localhost:9464": f"127.0.0.1:{operations_port}"}
    addresses = {"alertmanager": "localhost:9093", "exporter": "localhost:9115", "host": "events.example.com"}
    replaced |= {addresses[name]: address for name, address in others.items()}
    quick = shipped
    for old, new in replaced.items():
        assert old in quick
        quick = quick.replace(old, new)
    file.write_text(quick)
    return file


@contextmanager
def scraping(folder: Path, operations_port: int, **others: str) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration that scrapes a receiver, and knows `others` as `configure` does."""
    port = free_port()
    file = configure(folder, operations_port, **others)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    server = Prometheus(port)
    try:
        wait_until(lambda: server.is_ready() or process.poll() is not None, "a ready Prometheus")
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield server
    finally:
        process.terminate()
        process.wait(60)
