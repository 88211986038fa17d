"""Runs commands as a user does, in this process where that is possible; and nodes for them to meet."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from synckit_streams import SyncNode
from synckit_streams.cli import main


class Done(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def lines(self) -> list[Any]:
        """Every line of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error, said with --json."""
        (line,) = self.err.splitlines()
        error: dict[str, Any] = json.loads(line)["error"]
        return error


Command = Callable[..., Done]


def _stream(raw: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8", write_through=True)


def _said(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


@pytest.fixture
def synckit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`synckit ARGUMENTS`, in this process, with the test's directory as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        out, err = _stream(), _stream()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", _stream(stdin))
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main([str(each) for each in arguments])
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, _said(out), _said(err))

    return run


class Process:
    """`synckit ARGUMENTS` as a process of its own."""

    def __init__(self, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "synckit_streams.cli", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def line(self) -> str:
        """The next line of standard output."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().decode()

    def end(self, sign: signal.Signals | None = None, *, timeout_s: float = 30.0) -> Done:
        """Wait for it to end, after a signal if one is given."""
        if sign is not None:
            self.popen.send_signal(sign)
        try:
            out, err = self.popen.communicate(timeout=timeout_s)
        finally:
            self.popen.kill()
        return Done(self.popen.returncode, out.decode(), err.decode())


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts commands as processes; none outlives the test."""
    started: list[Process] = []

    def start(*arguments: object, env: dict[str, str] | None = None) -> Process:
        started.append(Process(*arguments, cwd=tmp_path, env=env))
        return started[-1]

    yield start
    for each in started:
        each.popen.kill()
        each.popen.communicate()


KINDS = ("sqlite", "rocksdb", "postgres", "redis")
"""The stores that keep what they were given."""


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], str]:
    """`url_of(kind, name)`: the URL of a store that is not there yet."""

    def made(kind: str, name: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        if kind == "rocksdb":
            return f"rocksdb:///{tmp_path}/{name}"
        if kind == "redis":
            server: str = request.getfixturevalue("redis_url")
            return f"{server}?name={name}-{tmp_path.name}"
        database: str = request.getfixturevalue("database")
        return f"{database}?schema={name}"

    return made


@pytest.fixture(params=KINDS)
def anywhere(request: pytest.FixtureRequest, url_of: Callable[[str, str], str]) -> str:
    """The URL of a store that is not there yet: what looks into one looks into all of them alike."""
    return url_of(request.param, "till")


NodeStarter = Callable[..., AbstractContextManager[SyncNode]]


@contextmanager
def _running(node_id: str, **options: Any) -> Iterator[SyncNode]:
    """A node that runs on an event loop of its own, in another thread, until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        node = SyncNode(node_id, **options)
        asyncio.run_coroutine_threadsafe(node.open(), loop).result(10)
        try:
            yield node
        finally:
            asyncio.run_coroutine_threadsafe(node.close(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def running() -> NodeStarter:
    """`with running("till-1", store=…): …` is a node somewhere else."""
    return _running


def events(node_id: str, store: str, drafts: Sequence[Any]) -> None:
    """Write events as a node does that is there for a moment."""

    async def write() -> None:
        async with SyncNode(node_id, store=store) as node:
            await node.append_many(drafts)

    asyncio.run(write())


@pytest.fixture
def write() -> Callable[[str, str, Sequence[Any]], None]:
    """`write(node_id, store_url, drafts)`."""
    return events
