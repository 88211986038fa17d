"""The reference of the API names every public name, with its signature as it is, and none that there is not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import synckit_streams
from synckit_streams import App, Draft, Retry, SyncKitError, SyncNode

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^##+ ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
PUBLIC = {name: getattr(synckit_streams, name) for name in synckit_streams.__all__}
FUNCTIONS = {name: each for name, each in PUBLIC.items() if not isinstance(each, type)}
ERRORS = {name: each for name, each in PUBLIC.items() if name not in FUNCTIONS and issubclass(each, SyncKitError)}
CLASSES = {name: each for name, each in PUBLIC.items() if name not in FUNCTIONS and name not in ERRORS}
OF_A_NODE = {"node_id": "", "topics": "", "store": "", "resolver": ""}


def own(kind: type) -> list[str]:
    """The public names that a class of ours defines: not what it has from `tuple`, `Mapping` or `Enum`."""
    ours = [each for each in kind.__mro__ if each.__module__.startswith("synckit_streams")]
    return sorted({name for each in ours for name in vars(each) if not name.startswith("_")})


METHODS: dict[str, Callable[..., Any]] = {
    **{name: getattr(SyncNode, name) for name in own(SyncNode) if name not in OF_A_NODE},
    **{f"App.{name}": getattr(App, name) for name in own(App) if inspect.isfunction(getattr(App, name))},
}
"""Those of a node have its own names on the page, since it came first."""


def signature(name: str, function: Callable[..., Any]) -> str:
    """As the page writes it: annotations as they stand in the code, and no `self`."""
    found = inspect.signature(function)
    shown: list[str] = []
    starred = False
    for each in found.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*")
        stars = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        default = "" if each.default is each.empty else f" = {each.default!r}"
        shown.append(f"{stars}{each.name}: {each.annotation}{default}")
    coroutine = "async " if inspect.iscoroutinefunction(function) else ""
    return f"{coroutine}{name}({', '.join(shown)}) -> {found.return_annotation}"


def rows(section: str) -> Iterator[list[str]]:
    """The cells of a section's tables."""
    for line in section.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def outside_blocks(section: str) -> str:
    return re.sub(r"^```.*?^```$", "", section, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_name_has_a_section_that_names_all_it_has(name: str) -> None:
    said = set(re.findall(r"`(?:\w+\.)?(\w+)[^`]*`", outside_blocks(SECTIONS[name])))
    elsewhere = {each.rpartition(".")[2] for each in METHODS} if name in ("SyncNode", "App") else set()
    assert set(own(CLASSES[name])) - elsewhere <= said


@pytest.mark.parametrize("name", [*METHODS, *FUNCTIONS])
def test_every_method_and_function_has_a_section_with_its_signature(name: str) -> None:
    function = METHODS.get(name) or FUNCTIONS[name]
    assert f"```text\n{signature(name.rpartition('.')[2], function)}\n```" in SECTIONS[name]


@pytest.mark.parametrize("name", sorted([*CLASSES, *FUNCTIONS, *METHODS]))
def test_every_section_has_an_example(name: str) -> None:
    assert "```python\n" in SECTIONS[name]


def test_a_section_is_about_something_that_there_is() -> None:
    assert set(SECTIONS) == {*CLASSES, *FUNCTIONS, *METHODS, "Errors", "Other modules"}


@pytest.mark.parametrize("kind", [SyncNode, Draft, App, Retry])
def test_every_parameter_is_listed_with_its_default(kind: type) -> None:
    """In the order in which it is declared."""
    table = {cells[0]: cells[1] for cells in rows(SECTIONS[kind.__name__]) if cells[0].startswith("`")}
    wanted = {
        # msgspec shows an empty mapping, made anew for each, as what makes it.
        f"`{each.name}`": "" if each.default is each.empty else f"`{each.default!r}`".replace("<factory>", "{}")
        for each in inspect.signature(kind).parameters.values()
    }
    assert list(table.items()) == list(wanted.items())


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_is_linked_to_its_paragraph(name: str) -> None:
    """In the row of the family that it belongs to."""
    code = ERRORS[name].code
    link = f"[`{name}`](errors.md#{code}-{name})".replace(f"#{code}-{name}", f"#{code}-{name}".lower())
    (row,) = [cells for cells in rows(SECTIONS["Errors"]) if link in "".join(cells)]
    family = next(each for each in ERRORS[name].__mro__ if each.__name__ in row[0])
    assert ERRORS[name] is SyncKitError or family is not SyncKitError
