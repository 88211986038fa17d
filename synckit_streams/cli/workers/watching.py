"""Which source files changed. The files are looked at, again and again: that works on every disk, and needs no library.

A look costs a `stat` for each file. The pause after it is ten times as long as it took, so watching never takes more
than a tenth of a core.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

PAUSE_S = 0.25
"""Least time between two looks."""
_PASSED_OVER = {"__pycache__", "node_modules", "site-packages"}


class Sources:
    """The Python files below some folders, as they were when they were last looked at.

    Args:
        folders: Where; a file stands for itself.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._seen = self._look()

    async def changed(self) -> Sequence[Path]:
        """Wait until something is written, made or removed; gives what."""
        while True:
            began = time.monotonic()
            now = await asyncio.to_thread(self._look)
            took = time.monotonic() - began
            before, self._seen = self._seen, now
            changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
            if changed:
                return changed
            await asyncio.sleep(max(PAUSE_S, 10 * took))

    def _look(self) -> Mapping[Path, tuple[int, int]]:
        found: dict[Path, tuple[int, int]] = {}
        for folder in self._folders:
            for path in _python_files(folder):
                try:
                    status = path.stat()
                except OSError:
                    continue  # removed meanwhile, or a link to nowhere: as good as not there
                found[path] = (status.st_mtime_ns, status.st_size)
        return found


def folders_of(module: str) -> Sequence[Path]:
    """What a program is made of: the working directory, and where its package lies if that is elsewhere.

    Args:
        module: Its name; it is not imported.
    """
    here = Path.cwd()
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        return [here]
    places = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    return [here, *(path for path in map(Path, places) if path.exists() and not path.resolve().is_relative_to(here))]


def _python_files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    for directory, below, files in os.walk(folder):
        # An environment has thousands of files that nobody edits.
        below[:] = [
            each
            for each in below
            if not each.startswith(".")
            and each not in _PASSED_OVER
            and not Path(directory, each, "pyvenv.cfg").exists()
        ]
        for each in files:
            if each.endswith(".py"):
                yield Path(directory, each)
