"""The pictures of the architecture page, against the code."""

from __future__ import annotations

import re
from itertools import product

import grimp

from tests.helpers.pages import blocks


def test_each_arrow_between_packages_is_an_import() -> None:
    """Where the picture has an arrow from one package to another, the one imports the other."""
    (picture,) = blocks("docs/explanation/architecture.md", "Packages")
    graph = grimp.build_graph("receiver")

    def modules(name: str) -> set[str]:
        package = f"receiver.{name}"
        assert package in graph.modules, name
        return {package} | graph.find_descendants(package)

    for line in picture.text.splitlines()[1:]:
        importers, imported = (re.findall(r"\w+", side) for side in line.split(" --> "))
        for one, other in product(importers, imported):
            pairs = product(modules(one), modules(other))
            assert any(graph.direct_import_exists(importer=a, imported=b) for a, b in pairs), f"{one} --> {other}"


def test_each_part_on_the_way_is_a_module() -> None:
    """Each box whose text begins with its own name is a module of the receiver: the others are not part of it."""
    (picture,) = blocks("docs/explanation/architecture.md", "The way of an event")
    boxes = {name for name, word in re.findall(r'(\w+)[\[(]+"(\w+)', picture.text) if name == word}
    assert len(boxes) == 5
    assert boxes <= {module.rpartition(".")[2] for module in grimp.build_graph("receiver").modules}
