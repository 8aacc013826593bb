"""The dashboards as Grafana reads them, and what it makes of a query before it sends it.

Macros and formats are those that Grafana documents for its PostgreSQL data source and for variables:
https://grafana.com/docs/grafana/latest/datasources/postgres/query-editor/
https://grafana.com/docs/grafana/latest/dashboards/variables/variable-syntax/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[2] / "deploy/grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted((FOLDER / "dashboards").glob("*.json"))
}
PROMETHEUS, POSTGRESQL = "metastudio-prometheus", "metastudio-postgresql"

_VARIABLE = re.compile(r"\$\{(\w+):sqlstring\}")
_MACRO = re.compile(r"\$(__\w+)\(([^)]*)\)")
_SECONDS = {"1m": 60, "1h": 3600}


class Query(NamedTuple):
    """One query of a dashboard; `name` is that of its panel, variable or annotation, and its refId."""

    dashboard: str
    name: str
    data_source: str
    text: str
    legend: str = ""


class Selection(NamedTuple):
    """What a viewer chose: a time range, and values of variables; a variable that is left out is All."""

    began: datetime
    ended: datetime
    values: dict[str, list[str]] = {}  # noqa: RUF012 (never changed)


def queries() -> list[Query]:
    """All queries of all dashboards."""
    return [query for name, dashboard in DASHBOARDS.items() for query in _queries(name, dashboard)]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels that show data."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expand_sql(query: Query, selection: Selection) -> str:
    """The statement that reaches PostgreSQL."""
    sent = _VARIABLE.sub(lambda match: _sql_strings(query, match[1], selection), query.text)
    sent = _MACRO.sub(lambda match: _macro(match[1], [arg.strip() for arg in match[2].split(",")], selection), sent)
    assert "$" not in sent, sent
    return sent


def expand_promql(query: Query, values: dict[str, str]) -> str:
    """The expression that reaches Prometheus."""
    # Four scrapes or more: how much more depends on the chosen time and the panel's width.
    sent = query.text.replace("$__rate_interval", "5m")
    for name, value in values.items():
        sent = sent.replace(f"${name}", value)
    assert "$" not in sent, sent
    return sent


def _queries(name: str, dashboard: dict[str, Any]) -> Iterator[Query]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            found = _text(target)
            title = f"{panel['title']} {target['refId']}"
            yield Query(name, title, target["datasource"]["uid"], found, target.get("legendFormat", ""))
    for variable in dashboard["templating"]["list"]:
        query = variable["query"]
        text = query["query"] if isinstance(query, dict) else query
        yield Query(name, f"variable {variable['name']}", variable["datasource"]["uid"], text)
    for annotation in dashboard["annotations"]["list"]:
        text = _text(annotation.get("target", annotation))
        yield Query(name, f"annotation {annotation['name']}", annotation["datasource"]["uid"], text)


def _text(target: dict[str, Any]) -> str:
    text: str = target["rawSql"] if "rawSql" in target else target["expr"]
    return text


def _sql_strings(query: Query, name: str, selection: Selection) -> str:
    variables = {one["name"]: one for one in DASHBOARDS[query.dashboard]["templating"]["list"]}
    if name in selection.values:
        return ",".join("'" + value.replace("'", "''") + "'" for value in selection.values[name])
    all_value: str = variables[name]["allValue"]  # which is not formatted
    return all_value


def _macro(name: str, arguments: list[str], selection: Selection) -> str:
    began, ended = (f"'{time:%Y-%m-%dT%H:%M:%S.%fZ}'" for time in (selection.began, selection.ended))
    first = arguments[0]
    if name == "__timeFilter":
        return f"{first} BETWEEN {began} AND {ended}"
    if name == "__timeGroupAlias":
        seconds = _SECONDS[arguments[1].strip("'")]
        return f'floor(extract(epoch from {first})/{seconds})*{seconds} AS "time"'
    assert first == ""
    return {"__timeFrom": began, "__timeTo": ended}[name]
