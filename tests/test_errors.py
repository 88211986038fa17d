"""The tree of errors: what it draws is what there is, and every code is explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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


def drawn() -> dict[str, tuple[str, str]]:
    """The tree in the module's text: for each name, its code and the name that it hangs from."""
    assert errors.__doc__ is not None
    tree = errors.__doc__.split("```")[1]
    assert tree.strip().startswith("SyncKitError(code, retryable, hint)")
    found: dict[str, tuple[str, str]] = {"SyncKitError": ("SK000", "Exception")}
    branch = ""
    for depth, name, code in re.findall(r"^(│  |   )?[├└]─ (\w+) (SK\d{3})\b", tree, flags=re.MULTILINE):
        found[name] = (code, branch if depth else "SyncKitError")
        branch = branch if depth else name
    assert len(found) == tree.count("─ ") + 1
    return found


def test_the_tree_that_is_drawn_is_the_tree_that_there_is() -> None:
    """Each class with its own code, under the class that it is a kind of."""
    assert drawn() == {each.__name__: (each.code, each.__bases__[0].__name__) for each in ALL}


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
