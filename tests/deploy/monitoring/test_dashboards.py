from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from tests.helpers.grafana import DASHBOARDS, FOLDER, PROMETHEUS, panels, queries
from tests.helpers.pages import section
from tests.helpers.prometheus import FOLDER as RULES
from tests.helpers.prometheus import names_in
from tests.helpers.stack import Stack

PROVISIONED = (FOLDER / "provisioning/datasources/metastudio.yaml").read_text()
SOURCES = dict(re.findall(r"uid: (\S+)\n    type: (\S+)", PROVISIONED))
COLUMNS = 24

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)


@every_dashboard
def test_identity(dashboard: dict[str, Any]) -> None:
    """A dashboard has a stable uid and what Grafana 11 and 12 read, and nothing that only an import fills in."""
    assert re.fullmatch(r"metastudio-[a-z]+", dashboard["uid"])
    assert dashboard["title"]
    assert dashboard["description"]
    assert 39 <= dashboard["schemaVersion"] <= 42
    assert not dashboard.keys() & {"id", "__inputs", "__requires"}
    assert "${DS_" not in json.dumps(dashboard)


def test_uids_and_links() -> None:
    """No two dashboards have one uid, and each link between dashboards leads to one of them."""
    uids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids) == 2
    assert set(re.findall(r"/d/([\w-]+)", json.dumps(DASHBOARDS))) <= set(uids)


@every_dashboard
def test_panels_say_what_they_show(dashboard: dict[str, Any]) -> None:
    """Each panel has an id and a title of its own, a description and a unit."""
    ids = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(ids)) == len(ids)
    assert len({*titles} - {""}) == len(titles)
    for panel in panels(dashboard):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]


@every_dashboard
def test_panels_lie_side_by_side(dashboard: dict[str, Any]) -> None:
    """No panel lies on another or beyond the grid's 24 columns, and no line of the grid is empty."""
    cells = [
        cell
        for panel in dashboard["panels"]
        for cell in itertools.product(
            range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"]),
            range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"]),
        )
    ]
    assert len(set(cells)) == len(cells)
    assert all(0 <= x < COLUMNS for x, _ in cells)
    assert {y for _, y in cells} == set(range(max(y for _, y in cells) + 1))


@every_dashboard
def test_data_sources_are_provisioned(dashboard: dict[str, Any]) -> None:
    """Each panel, query, variable and annotation names a provisioned data source by uid and type."""
    named = [
        *(one["datasource"] for panel in panels(dashboard) for one in (panel, *panel["targets"])),
        *(one["datasource"] for one in dashboard["templating"]["list"]),
        *(one["datasource"] for one in dashboard["annotations"]["list"]),
    ]
    assert len(SOURCES) == 2
    assert {(one["uid"], one["type"]) for one in named} <= set(SOURCES.items())


@every_dashboard
def test_variables_are_defined(dashboard: dict[str, Any]) -> None:
    """Queries use the dashboard's own variables and Grafana's, and each of its own is used."""
    own = {one["name"] for one in dashboard["templating"]["list"]}
    texts = [query.text for query in queries() if DASHBOARDS[query.dashboard] is dashboard]
    used = {name for text in texts for name in re.findall(r"\$\{?(\w+)", text)}
    assert {name for name in used if not name.startswith("__")} == own
    assert used - own <= {"__rate_interval", "__timeFilter", "__timeFrom", "__timeTo", "__timeGroupAlias"}


def test_what_is_provisioned_holds_no_secret() -> None:
    """The password comes from the environment, and the reader is the role of reader.sql."""
    assert re.findall(r"password: (\S+)", PROVISIONED) == ["$METASTUDIO_READER_PASSWORD"]
    assert "user: metastudio_reader " in PROVISIONED


def test_the_guide_says_where_it_goes() -> None:
    """What Grafana needs from its environment stands in the guide, and where it looks for the dashboards."""
    guide = section("docs/how-to/monitoring.md", "Grafana")
    (path,) = re.findall(r"path: (\S+)", (FOLDER / "provisioning/dashboards/metastudio.yaml").read_text())
    assert f"cp -r deploy/grafana/dashboards {path}\n" in guide
    for variable in re.findall(r"\$(METASTUDIO_\w+)", PROVISIONED):
        assert f"`{variable}`" in guide


def test_metrics_that_are_named_exist(monitored: Stack) -> None:
    """Each metric that a panel, variable or annotation names is exported by a real receiver, or recorded by a rule."""
    recorded = set(re.findall(r"record: (\S+)", (RULES / "rules.yml").read_text()))
    known = monitored.receiver_metrics() | recorded
    named = {name: query for query in queries() if query.data_source == PROMETHEUS for name in names_in(query.text)}
    assert {name: query for name, query in named.items() if name not in known} == {}


def test_each_exported_metric_is_used(monitored: Stack) -> None:
    """No metric is exported that neither a rule nor a panel uses."""
    texts = [query.text for query in queries()] + [(RULES / name).read_text() for name in ("rules.yml", "alerts.yml")]
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for text in texts for name in names_in(text)}
    exported = {re.sub(r"_(bucket|sum|count)$", "", name) for name in monitored.receiver_metrics()}
    assert exported - used == set()
