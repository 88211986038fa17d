"""The file that type checkers read also runs, and it leaves no public name out."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import synckit_streams
from synckit_streams import SyncNode, SyncResult
from tests.typing import public_api

TREE = ast.parse(Path(public_api.__file__).read_text(encoding="utf-8"))
NAMES = {each.id for each in ast.walk(TREE) if isinstance(each, ast.Name)}
ATTRIBUTES = {each.attr for each in ast.walk(TREE) if isinstance(each, ast.Attribute)}


def public(kind: type) -> set[str]:
    """The names of a class that are meant for callers."""
    return {name for name in dir(kind) if not name.startswith("_")}


def test_what_type_checks_also_runs(tmp_path: Path) -> None:
    """Two nodes write, read, resolve and sync; the second one has all three events of the first."""
    result = public_api.run(str(tmp_path))
    assert (result.events_pulled, result.complete) == (3, True)


def test_every_public_name_is_used() -> None:
    assert set(synckit_streams.__all__) <= NAMES


def test_every_public_name_is_there_once_and_sorted() -> None:
    assert synckit_streams.__all__ == sorted(set(synckit_streams.__all__))
    assert all(hasattr(synckit_streams, name) for name in synckit_streams.__all__)


def test_every_public_method_is_called() -> None:
    assert public(SyncNode) <= ATTRIBUTES
    assert set(SyncResult.__struct_fields__) <= ATTRIBUTES


def test_every_setting_of_a_node_is_given() -> None:
    """But for `world`, which is the simulator's."""
    settings = set(inspect.signature(SyncNode).parameters) - {"node_id", "world"}
    (call,) = [each for each in ast.walk(TREE) if isinstance(each, ast.Call) and len(each.keywords) > len(settings) - 2]
    assert {keyword.arg for keyword in call.keywords} == settings


def test_the_package_says_that_it_is_typed() -> None:
    """PEP 561; that the wheel has the mark, too, is tested where the wheel is."""
    assert (Path(synckit_streams.__file__).parent / "py.typed").exists()
