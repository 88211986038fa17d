"""`synckit run` as a process of its own, to be asked, signalled and waited for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


class Run:
    """One `synckit run`, with its log in a file."""

    def __init__(self, directory: Path, *arguments: str, terminal: int | None = None) -> None:
        self.directory = directory
        self.log = directory / f"log-{time.monotonic_ns()}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "synckit_streams.cli", "run", *arguments],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log if terminal is None else terminal,
                start_new_session=True,
                # The first terminal that the leader of a session opens is the one that hangs up on it.
                preexec_fn=None if terminal is None else partial(_open_terminal, os.ttyname(terminal)),
            )

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def journal(self) -> list[str]:
        """What the workers did."""
        path = self.directory / "journal"
        return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self, what: str) -> list[int]:
        """Of the workers that did so."""
        path = self.directory / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.rpartition(" ")[2]) for line in lines if line.startswith(what)]

    def until(self, what: str, found: Callable[[], Any]) -> Any:
        """Wait for it; gives what was found."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            got = found()
            if got:
                return got
            time.sleep(0.02)
        raise AssertionError(f"never: {what}\n{self.said}\n{self.journal}")

    def until_said(self, pattern: str, times: int = 1) -> None:
        self.until(pattern, lambda: len(re.findall(pattern, self.said)) >= times)

    @property
    def url(self) -> str:
        """Where it serves."""
        found = self.until("it serves", lambda: re.search(r"at (http://\S+)/metrics", self.said))
        return str(found[1])

    def get(self, path: str) -> tuple[int, str]:
        """The status and the body of an answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def health(self, path: str = "/health") -> tuple[int, Any]:
        status, body = self.get(path)
        return status, json.loads(body)

    def metric(self, name: str) -> dict[str, float]:
        """Its values by worker."""
        found = re.findall(rf'^{name}{{worker="(\d+)"}} (\S+)$', self.get("/metrics")[1], re.MULTILINE)
        return {worker: float(value) for worker, value in found}

    def send(self, by: signal.Signals) -> None:
        self.process.send_signal(by)

    def end(self, by: signal.Signals | None = None) -> int:
        """Its status, after a signal if one is given."""
        if by is not None:
            self.send(by)
        return self.process.wait(PATIENCE_S)


def _open_terminal(name: str) -> None:
    os.close(os.open(name, os.O_RDWR))


def dead(pid: int) -> bool:
    """Whether it has ended; who waits for it may not have been told yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"
