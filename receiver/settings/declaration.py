"""How a setting is declared: as a field of a dataclass, with its parser, default and meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

PREFIX = "RECEIVER_"
_T = TypeVar("_T")


class Setting(NamedTuple):
    """One setting: which field of its dataclass it fills, how its value is read, and what it means."""

    field: str
    parse: Callable[[object], Any]
    default: object
    meaning: str


def setting(
    parse: Callable[[object], _T],
    default: _T,
    meaning: str,
    *,
    mask: Callable[[Any], str] | None = None,
    file: tuple[Callable[[object], _T], str] | None = None,
) -> _T:
    """Declare a setting as a field.

    `mask` makes it a secret: people are shown what `mask` gives for the whole dataclass instead of the value.
    `file` is the parser and the meaning of a second setting, ``<name>_file``: a file with the value in it.
    """
    return field(default=default, repr=mask is None, metadata={"own": (parse, meaning), "file": file, "mask": mask})


def variable(name: str) -> str:
    """The environment variable that sets the setting `name`."""
    return PREFIX + name.upper()


def declared(settings: type) -> dict[str, Setting]:
    """The settings that the dataclass declares, by name."""
    found = {}
    for one in fields(settings):
        for name, source, default in ((one.name, "own", one.default), (f"{one.name}_file", "file", None)):
            if one.metadata.get(source):
                parse, meaning = one.metadata[source]
                found[name] = Setting(one.name, parse, default, meaning)
    return found


def shown(settings: Any) -> dict[str, Any]:  # noqa: ANN401 (any dataclass that declares settings)
    """The values of the dataclass's settings by name, as they are written in the file, secrets masked."""
    masks = {one.name: one.metadata["mask"] for one in fields(settings) if one.metadata}
    return {name: mask(settings) if mask else written(getattr(settings, name)) for name, mask in masks.items()}


def written(value: object) -> Any:  # noqa: ANN401 (a text, a number or a list)
    """`value` as it is written in the file."""
    match value:
        case (str(host), int(port)):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case tuple():
            return [str(one) for one in value]
        case Path() | None:
            return str(value or "")
    return value
