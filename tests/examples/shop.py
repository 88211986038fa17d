"""The shop in a folder of the test's own, run by the commands that its README shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.docs.test_code_blocks import Block, blocks, commands, matches

SHOP = Path(__file__).parents[2] / "examples" / "shop"
README = SHOP / "README.md"
PATIENCE_S = 120.0


def shown_under(heading: str) -> list[tuple[str, list[str]]]:
    """The commands below a heading of the README, each with what it prints."""
    lines = README.read_text().splitlines()
    start = lines.index(f"## {heading}") + 1
    after = (at for at in range(start, len(lines)) if lines[at].startswith("## "))
    end = next(after, len(lines))
    found: list[Block] = [each for each in blocks(README) if each.kind == "console" and start < each.line <= end]
    return [pair for block in found for pair in commands(block)]


class Shop:
    """A terminal in a copy of the folder.

    Args:
        folder: Where the copy is made.
        instead: What is put in the place of what a command says: addresses and ports.
    """

    def __init__(self, folder: Path, instead: dict[str, str]) -> None:
        self.folder = folder / "shop"
        shutil.copytree(SHOP, self.folder, ignore=shutil.ignore_patterns("__pycache__", "*.db*", ".pytest_cache"))
        programs = Path(sys.executable).parent
        self._environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        self._instead = {"--port 8001": f"--port {free_port()}", "--port 8002": f"--port {free_port()}", **instead}
        self._beside: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, command: str, expected: list[str]) -> None:
        """As a shell would: `export`, a program that is waited for, or one that runs on beside."""
        for shown, meant in self._instead.items():
            command = command.replace(shown, meant)
        if command.startswith("pip "):
            return
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self._environment[name] = value
        elif command.endswith(" &"):
            self.start(command.removesuffix(" &"))
        else:
            done = subprocess.run(
                command,
                shell=True,
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            told = f"{command}\nsaid\n{done.stdout}\n{self.logs()}"
            assert done.returncode == 0, told
            assert not expected or matches(expected, done.stdout), told

    def start(self, command: str) -> None:
        """Let it run beside; it is called as its first words say."""
        with self.log(name_of(command)).open("ab") as log:
            self._beside[name_of(command)] = subprocess.Popen(
                command.split(),
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.log"

    def logs(self) -> str:
        return "\n".join(f"{name}:\n{self.log(name).read_text()[-3000:]}" for name in self._beside)

    def workers(self, name: str) -> list[int]:
        """The process ids of a service's workers that live."""
        found = re.findall(r"worker-\d+ is ready \(pid (\d+)\)", self.log(name).read_text())
        return [int(pid) for pid in found if Path(f"/proc/{pid}").exists()]

    def kill(self, name: str) -> None:
        """The whole service: what it started dies with it."""
        self._beside[name].kill()
        self._beside[name].wait()

    def until(self, what: str, true: Callable[[], Any]) -> None:
        """Wait for it."""
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, f"never: {what}\n{self.logs()}"
            time.sleep(0.02)

    def end(self) -> dict[str, int]:
        """In order: gives the status of each."""
        for process in self._beside.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(PATIENCE_S) for name, process in self._beside.items()}

    def destroy(self) -> None:
        """Nothing outlives the test."""
        for process in self._beside.values():
            process.kill()
            process.wait()


def name_of(command: str) -> str:
    """Of what runs beside: `billing:app`, or the program's name."""
    return next((word for word in command.split() if ":app" in word), command.split()[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
