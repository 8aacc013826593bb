"""The reference pages for metrics, alerts, tables and views, and reasons, compared with the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from sqlalchemy import create_engine, inspect

from receiver.database import schema
from receiver.database.database import Database
from receiver.metrics import REJECTIONS, Metrics
from receiver.protocol.events import Reason
from receiver.protocol.signature import AuthType
from tests.helpers.pages import ROOT, code, headings, prose, read, rows, section

METRICS, ALERTS, HTTP, TABLES = (
    f"docs/reference/{name}.md" for name in ("metrics", "alerts", "http", "tables-and-views")
)


def first_codes(text: str) -> list[str]:
    """What stands in backticks in the first cells of a text's tables."""
    return [name for cells in rows(text) for name in code(cells[0])]


# Metrics.

FAMILIES = {family.name.removeprefix("metastudio_"): family for family in Metrics().registry.collect()}
DESCRIBED = {cells[0].strip("`").partition("{")[0]: cells for cells in rows(read(METRICS)) if len(cells) == 3}


def shown_name(family: Metric) -> str:
    """A family's name as Prometheus shows it."""
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return family.name.removeprefix("metastudio_") + suffix


def test_each_metric_is_described() -> None:
    """The page has each metric of the registry with its type and labels, and no other."""
    expected = {}
    for family in FAMILIES.values():
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        braces = f"{{{','.join(labels)}}}" if labels else ""
        expected[shown_name(family)] = (
            f"`{shown_name(family)}{braces}`",
            "gauge" if family.type == "info" else family.type,
        )
    assert {name: (cells[0], cells[1]) for name, cells in DESCRIBED.items()} == expected


def test_each_label_value_is_described() -> None:
    """Each value that a label can have stands in the metric's row, or in a list of values, and no others do."""
    items = re.findall(r"^- (`\w+` is (?:.|\n )*)", read(METRICS), flags=re.MULTILINE)
    lists = {label: set(values) for label, *values in map(code, items)}
    lists["endpoint"] = {"default"}
    of_none = {"none", "unknown_path"}  # in one row alone, and only together
    projector_errors = set(first_codes(section(METRICS, "Why an attempt at the database failed")))
    for family in FAMILIES.values():
        for label in {label for sample in family.samples for label in sample.labels} - {"le", "version"}:
            values = {sample.labels[label] for sample in family.samples}
            in_row = set(code(DESCRIBED[shown_name(family)][2]))
            described = lists.get(label, projector_errors if family.name == "metastudio_projector_errors" else in_row)
            assert values - of_none == described - of_none, (family.name, label)


@pytest.mark.parametrize("page", ["docs/how-to/runbook.md", "docs/how-to/monitoring.md", "docs/how-to/scale-out.md"])
def test_metrics_that_are_named_exist(page: str) -> None:
    """Each metric that a page names with its prefix is one."""
    exported = {f"metastudio_{name}" for name in DESCRIBED}
    assert set(re.findall(r"metastudio_[a-z_]+", prose(page))) <= exported | {"metastudio_reader"}


# Alerts.


def test_each_alert_is_described() -> None:
    """The page has the alerts in their order, each with its severity, its time and its link."""
    groups: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    expected = [
        [
            f"[{rule['alert']}](../how-to/runbook.md#{rule['alert'].lower()})",
            rule["labels"]["severity"],
            rule.get("for", "0s"),
        ]
        for group in groups
        for rule in group["rules"]
    ]
    assert [cells[:3] for cells in rows(read(ALERTS))] == expected


# Reasons.


def test_each_rejection_is_described() -> None:
    """The page has each reason for which a callback is rejected, and no other."""
    assert sorted(first_codes(section(HTTP, "Why a callback is rejected"))) == sorted([*REJECTIONS, "unknown_path"])


def test_each_auth_type_is_described() -> None:
    """The page has each auth_type."""
    assert [one for one in first_codes(section(HTTP, "Signatures")) if one.isupper()] == list(AuthType)


def test_each_quarantine_reason_is_described() -> None:
    """The page has each reason for which a body is kept in quarantine, and no other."""
    found = first_codes(section(TABLES, "quarantine"))
    assert found[found.index("body") + 1 :] == [*Reason, "refused", "crash", "stale"]


# Log messages.


def test_each_log_message_is_described() -> None:
    """The page has each message that is logged, and none that is not in the code."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "receiver").rglob("*.py")]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    logged = {match for tree in trees for node in ast.walk(tree) for match in messages(node)}
    documented = set(code(read("docs/reference/logs.md").partition("| message |")[2]))
    documented -= {"reason", "client", "refused"}
    assert documented - texts == set()
    assert logged - documented == set()
    assert len(logged) > 10


def messages(node: ast.AST) -> Iterator[str]:
    """The message, where the node is a call that logs one."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger")), args=[ast.Constant(value=str(message)), *_]):
            yield message


# Tables and views.


def test_each_table_and_column_is_described(tmp_path: Path) -> None:
    """The page has each table that the migrations make, with all of its columns and no others."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    database = Database(url)
    database.migrate()
    database.close()
    engine = create_engine(url)
    made = inspect(engine)
    columns = {table: {one["name"] for one in made.get_columns(table)} for table in made.get_table_names()}
    views = set(made.get_view_names())
    engine.dispose()
    del columns["alembic_version"]
    assert [one for one in headings(TABLES) if one in columns] == [
        "events",
        "streams",
        "jobs",
        "stale_after",
        "platform_jobs",
        "platform_check",
        "quarantine",
    ]
    for table, names in columns.items():
        described = first_codes(section(TABLES, table))
        if table == "quarantine":
            described = described[: described.index("body") + 1]
        assert sorted(described) == sorted(names), table
    views.remove("ordered_events")  # of which the others are made
    assert views == {view.name for view in schema.views.tables.values()}
    assert views <= set(headings(TABLES))


@pytest.mark.parametrize("view", schema.views.tables.values(), ids=lambda view: view.name)
def test_each_column_of_a_view_is_described(view: Any) -> None:
    """The page has each column of a view, and no others."""
    common = " ".join(section(TABLES, "Views by event type").split())
    described = first_codes(section(TABLES, view.name))
    if f"`{view.name}`" in common:
        described += code(common.partition(" with ")[2].partition(" as in ")[0])
    assert sorted(described) == sorted(view.c.keys())


# The architecture.


def test_each_package_is_described() -> None:
    """The page names each package and module of the receiver."""
    page = "docs/explanation/architecture.md"
    parts = {path for path in (ROOT / "receiver").iterdir() if path.name.isidentifier() or path.suffix == ".py"}
    parts -= {path for path in parts if path.name.startswith("__")}
    assert {f"receiver/{path.name}" for path in parts} <= set(first_codes(section(page, "Packages")))
