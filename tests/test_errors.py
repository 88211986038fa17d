"""The tree of errors: what it draws is what there is, and every code is explained."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from synckit_streams import errors
from synckit_streams.errors import SyncKitError

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")


def classes(root: type[SyncKitError] = SyncKitError) -> Iterator[type[SyncKitError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


ALL = list(classes())


class Drawn(NamedTuple):
    """What the tree in the module's text says of a class."""

    code: str
    hangs_from: str
    retryable: bool


def drawn() -> dict[str, Drawn]:
    """The tree in the module's text, by name."""
    assert errors.__doc__ is not None
    tree = errors.__doc__.split("```")[1]
    assert tree.strip().startswith("SyncKitError(code, retryable, hint)")
    found: dict[str, Drawn] = {"SyncKitError": Drawn("SK000", "Exception", False)}
    branch = ""
    for depth, name, code, says in re.findall(r"^(│  |   )?[├└]─ (\w+) (SK\d{3})\b(.*)$", tree, flags=re.MULTILINE):
        found[name] = Drawn(code, branch if depth else "SyncKitError", says.endswith("(retryable)"))
        branch = branch if depth else name
    assert len(found) == tree.count("─ ") + 1
    return found


def test_the_tree_that_is_drawn_is_the_tree_that_there_is() -> None:
    """Each class with its own code, under the class that it is a kind of, and whether to try again."""
    assert drawn() == {each.__name__: Drawn(each.code, each.__bases__[0].__name__, each.retryable) for each in ALL}


def test_every_class_of_the_module_is_in_the_tree() -> None:
    defined = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)}
    assert defined == set(ALL)


def test_a_code_belongs_to_one_class_and_to_its_branch() -> None:
    codes = [each.code for each in ALL]
    assert len(set(codes)) == len(codes)
    for each in ALL:
        assert re.fullmatch(r"SK\d{3}", each.code)
        parent = each.__bases__[0]
        if issubclass(parent, SyncKitError) and parent is not SyncKitError:
            assert each.code[:3] == parent.code[:3]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_every_code_has_a_paragraph(kind: type[SyncKitError]) -> None:
    """What happened, what is safe and what to do; and whether to try again, as the class says it."""
    (paragraph,) = re.findall(
        rf"^## {kind.code} {kind.__name__}\n\n(.+?)(?=\n## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL
    )
    assert len(paragraph.split()) >= 25
    anchor = f"{kind.code}-{kind.__name__}".lower()
    assert f"| [{kind.code}](#{anchor}) | `{kind.__name__}` | {'yes' if kind.retryable else 'no'} |" in PAGE


def test_no_paragraph_is_left_of_a_code_that_is_gone() -> None:
    assert re.findall(r"^## (SK\d{3})", PAGE, flags=re.MULTILINE) == sorted(each.code for each in ALL)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_an_error_says_its_code_what_went_wrong_and_what_to_do(kind: type[SyncKitError]) -> None:
    error = kind("it went wrong", hint="do this")
    assert str(error) == f"[{kind.code}] it went wrong (do this)"
    assert (error.message, error.hint) == ("it went wrong", "do this")
    plain = kind("it went wrong")
    assert plain.hint == kind.default_hint
    assert str(plain) == f"[{kind.code}] it went wrong" + (f" ({kind.default_hint})" if kind.default_hint else "")
    assert kind.__doc__


# ---------------------------------------------------------------------------------------------------------------- hints

ROOT = Path(__file__).parents[1]
SAYS_ALL_ITSELF = {"Invalid", "ConfigError", "StoreError", "ConnectorError"}
"""What these are raised with names a value, a setting or a path, and there is nothing to do but to correct it."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a plain name in a file."""
    for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name):
            yield each.func.id, each


def raised_without_a_hint() -> dict[str, list[str]]:
    """For each class of ours, the places in the shipped code that raise it and leave the hint to it."""
    names = {each.__name__ for each in ALL}
    found: dict[str, list[str]] = {}
    for path in [*(ROOT / "synckit_streams").rglob("*.py"), *(ROOT / "connectors").rglob("*.py")]:
        if "simulation" in path.parts:  # its broker stands in for one that says so properly
            continue
        for name, call in calls(path):
            if name in names and not any(keyword.arg in ("hint", None) for keyword in call.keywords):
                found.setdefault(name, []).append(f"{path.relative_to(ROOT)}:{call.lineno}")
    return found


def test_whoever_gets_an_error_is_told_what_to_do() -> None:
    """By the place that raises it or, where that says nothing, by the class."""
    silent = {
        name: places for name, places in raised_without_a_hint().items() if not getattr(errors, name).default_hint
    }
    assert {name: places for name, places in silent.items() if name not in SAYS_ALL_ITSELF} == {}


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.default_hint], ids=lambda kind: kind.code)
def test_a_hint_is_advice(kind: type[SyncKitError]) -> None:
    """Short, no sentence of its own, and not the description of the class again."""
    hint = kind.default_hint
    assert 10 < len(hint) <= 110
    assert not hint.endswith(".")
    assert hint[0] == hint[0].lower()
    assert hint not in (kind.__doc__ or "")
