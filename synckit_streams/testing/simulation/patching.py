"""Shipped code with a change in it: the module's source is altered before it is run, in a package of its own.

While `changed` holds, `synckit_streams` and `synckit_connectors` are imported anew, with the changed modules among
them; then everything is put back. A change whose old text is no longer in the source is an error, so none of them rots.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import unified_diff
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

ROOTS = ("synckit_streams", "synckit_connectors")


class Edit(NamedTuple):
    """One place in the source.

    Args:
        module: Its full name.
        old: What stands there, exactly once.
        new: What stands there instead.
    """

    module: str
    old: str
    new: str


class Stale(Exception):
    """The source is not what the change was made for."""


def path_of(module: str) -> Path:
    """The file of a module of ours; nothing is imported for it."""
    root = importlib.util.find_spec(module.partition(".")[0])
    assert root is not None
    assert root.origin is not None
    return Path(root.origin).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")


def sources(edits: Sequence[Edit]) -> dict[str, str]:
    """The changed source of each module.

    Raises:
        Stale: an old text is not there just once.
    """
    found: dict[str, str] = {}
    for module, old, new in edits:
        source = found.get(module) or path_of(module).read_text(encoding="utf-8")
        times = source.count(old)
        if times != 1:
            raise Stale(f"this stands {times} times in {module}, not once:\n{old}")
        found[module] = source.replace(old, new)
    return found


def diff(edits: Sequence[Edit]) -> str:
    """The change as a unified diff."""
    lines: list[str] = []
    for module, changed in sources(edits).items():
        name = "/".join(module.split(".")) + ".py"
        before = path_of(module).read_text(encoding="utf-8").splitlines(keepends=True)
        lines += unified_diff(before, changed.splitlines(keepends=True), f"a/{name}", f"b/{name}")
    return "".join(lines)


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._source, self.path, "exec", dont_inherit=True)
        return code


class _Finder(MetaPathFinder):
    def __init__(self, changed: dict[str, str]) -> None:
        self._changed = changed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = self._changed.get(fullname)
        if source is None:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, source)
        return spec


@contextmanager
def changed(edits: Sequence[Edit]) -> Iterator[None]:
    """Import our packages anew, with a change in them; import what is to run inside the block.

    Raises:
        Stale: see `sources`.
    """
    finder = _Finder(sources(edits))
    saved = _take_out()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _take_out()
        sys.modules.update(saved)


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in ROOTS]
    return {name: sys.modules.pop(name) for name in names}
