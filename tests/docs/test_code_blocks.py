"""What the README and the documentation show, runs.

How to write a page:

- ```` ```python ```` and ```` ```console ```` blocks are run, from top to bottom, in one empty directory a page. Blocks
  of any other kind (```` ```text ````, ```` ```sh ````, ```` ```json ````) are only shown.
- A page shares its state: the names of its Python blocks, and the files in its directory. A block may `await`.
- In a console block a line that begins with `$ ` is a command (`\\` at its end continues it); the lines below it, up to
  the next command, are what it prints, both streams together. `...` stands for anything, in a line or for whole lines.
  A command without lines below it may print what it likes. A command must succeed, unless it prints `error SK…`.
- Below a Python block, a ```` ```text ```` block that begins with `# prints` is what it printed, by the same rules.
- Commands that need a network or another program (`SHOWN`) are only shown.
- `nats://127.0.0.1:4222`, `redis://127.0.0.1:6379`, `kafka://127.0.0.1:9092` and, with any user and database,
  PostgreSQL's `127.0.0.1:5432` are real servers, of the page's own; with PostgreSQL's come its programs.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from synckit_streams.errors import MissingDependency
from synckit_streams.testing.brokers import NatsServer, RedisServer, Server
from synckit_streams.testing.kafka_server import KafkaServer
from synckit_streams.testing.postgres_server import PostgresServer
from synckit_streams.testing.pytest_plugin import lacking

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PIPE_CLOSED = 141
SHOWN = ("make", "pip", "nats", "nats-server", "redis-cli", "redis-server")
SERVERS: dict[str, Callable[[], Server]] = {
    "nats://127.0.0.1:4222": NatsServer,
    "redis://127.0.0.1:6379": RedisServer,
    "kafka://127.0.0.1:9092": KafkaServer,
    "127.0.0.1:5432": PostgresServer,
}

# What a page takes for granted, where that would only stand in its way.
GRANTED = {
    "docs/reference/errors.md": """
from synckit_streams import Draft, SyncNode
node = await SyncNode("till-7", store="memory:").open()
draft = Draft(topic="orders", type="order.placed", aggregate_id="o-1")
later = []
""",
    "docs/reference/stores.md": "class MyMedia: ...",
    "docs/reference/sqlite-schema.md": """
from synckit_streams import Draft, SyncNode
async with SyncNode("till-7", store="sqlite:///till.db") as node:
    await node.append(Draft(topic="orders", type="order.placed", aggregate_id="o-1"))
""",
}

_fence = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """One block of a page: its kind, its first line's number, and its text."""

    kind: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["kind"], text.count("\n", 0, found.start()) + 2, dedent(found["body"]))
        for found in _fence.finditer(text)
    ]


def matches(expected: list[str], printed: str) -> bool:
    """Whether `printed` is what was expected; `...` is anything, and some white space is as good as other."""
    wanted = "\n".join(" ".join(line.split()) for line in expected).strip()
    said = "\n".join(" ".join(line.split()) for line in printed.splitlines()).strip()
    pattern = re.escape(wanted).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, said, flags=re.DOTALL) is not None


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, and the lines below it."""
    current: list[str] = []
    below: list[str] = []
    for line in block.text.splitlines():
        if current and current[-1].endswith("\\"):
            current.append(line)
        elif line.startswith("$ "):
            if current:
                yield "\n".join(current), below
            current, below = [line[2:]], []
        else:
            below.append(line)
    assert current, f"a console block without a command, at line {block.line}"
    yield "\n".join(current), below


class Page:
    """Runs one page."""

    def __init__(self, path: Path, directory: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.directory = directory
        self.names: dict[str, Any] = {"__name__": "__page__"}
        self.runner = asyncio.Runner()
        self.servers: dict[str, Server] = {}

    def run(self) -> int:
        """Everything; gives how many blocks and commands ran."""
        ran = 0
        printed = ""
        for url, kind in SERVERS.items():
            if url in self.path.read_text(encoding="utf-8"):
                try:
                    self.servers[url] = kind()
                except MissingDependency as missing:
                    lacking(str(missing))
                self.servers[url].start()
        if self.name in GRANTED:
            self.python(Block("python", 1, GRANTED[self.name]))
        for block in blocks(self.path):
            if block.kind == "python":
                printed = self.python(block)
                ran += 1
            elif block.kind == "console":
                ran += sum(self.command(block, command, below) for command, below in commands(block))
            elif block.kind == "text" and block.text.startswith("# prints\n"):
                expected = block.text.splitlines()[1:]
                assert matches(expected, printed), f"{self.name}:{block.line}: it printed\n{printed}"
        return ran

    def local(self, text: str) -> str:
        """With the page's own servers."""
        for url, server in self.servers.items():
            text = text.replace(url, where(server))
        return text

    def shown(self, printed: str) -> str:
        """As the page would show it."""
        for url, server in self.servers.items():
            printed = printed.replace(where(server), url)
        return printed

    def python(self, block: Block) -> str:
        """Run it; gives what it printed."""
        # The block's own line numbers, so that a traceback points into the page.
        source = "\n" * (block.line - 1) + self.local(block.text)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, str(self.path), "exec", flags=flags, dont_inherit=True)
        out = StringIO()
        with redirect_stdout(out):
            if code.co_flags & inspect.CO_COROUTINE:
                self.runner.run(_awaited(code, self.names))
            else:
                exec(code, self.names)
        return self.shown(out.getvalue())

    def command(self, block: Block, command: str, below: list[str]) -> bool:
        """Run it, if it is one that can be; gives whether it ran."""
        if command.split()[0] in SHOWN:
            return False
        programs = [each.binary.parent for each in self.servers.values() if isinstance(each, PostgresServer)]
        path = os.pathsep.join(map(str, [Path(sys.executable).parent, *programs, os.environ.get("PATH", "")]))
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", self.local(command)],
            cwd=self.directory,
            env={**os.environ, "PATH": path, "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        printed = self.shown(done.stdout)
        where = f"{self.name}:{block.line}: $ {command}\n{printed}"
        succeeded = done.returncode == 0 or (done.returncode == PIPE_CLOSED and " | head" in command)
        assert succeeded != any(line.startswith("error SK") for line in below), where
        assert not any(below) or matches(below, printed), f"{where}\nand not\n" + "\n".join(below)
        return True

    def close(self) -> None:
        self.runner.close()
        for value in self.names.values():
            if isinstance(value, sqlite3.Connection):
                value.close()  # `with` ends its transaction, and leaves it open
        for server in self.servers.values():
            server.close()


def where(server: Server) -> str:
    """What stands in a page in its place."""
    return f"127.0.0.1:{server.port}" if isinstance(server, PostgresServer) else server.url


async def _awaited(code: Any, names: dict[str, Any]) -> None:
    await eval(code, names)


@pytest.mark.nats
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_shows_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Page(path, tmp_path)
    try:
        page.run()
    finally:
        page.close()


# ------------------------------------------------------------------------------------------ does this file do its work?


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    page = Page(tmp_path / "page.md", tmp_path)
    try:
        return page.run()
    finally:
        page.close()


def test_a_page_shares_its_names_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
```python
import asyncio
from pathlib import Path

async def name():
    await asyncio.sleep(0)
    return "file"
```
```python
Path(await name()).write_text("hello\\nyou\\n")
print(1, 2)
```
```text
# prints
1 ...
```
```console
$ cat file \\
  file
hello
...
you
$ wc -l < file
2
$ pip install something
```
```text
not python
```
"""
    assert run(tmp_path, monkeypatch, text) == 4


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 / 0\n```",
        "```python\nif True:\n    await undefined()\n```",
        "```console\n$ false\n```",
        "```console\n$ echo one\ntwo\n```",
        "```console\n$ echo one\nerror SK100\n```",
        "```console\n$ echo one; exit 3\n```",
        "```console\nno command\n```",
        "```python\nprint(1)\n```\n```text\n# prints\n2\n```",
        "1. a list\n\n   ```python\n   raise ValueError\n   ```",
    ],
)
def test_a_page_that_lies_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises((AssertionError, ArithmeticError, NameError, ValueError)):
        run(tmp_path, monkeypatch, text)


def test_every_page_that_something_is_granted_to_is_there() -> None:
    assert all((ROOT / name).exists() for name in GRANTED)
