"""What all commands have in common: help, errors, signals, and no colours where nobody sees them."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from synckit_streams.cli import root
from synckit_streams.cli.terminal import plain, plural
from tests.cli.conftest import Command, Process

ROOT = Path(__file__).parents[2]
COMMANDS = [name for name, module, _ in root.COMMANDS if find_spec(module) is not None]


def test_the_version_is_said(synckit: Command) -> None:
    done = synckit("--version")
    assert (done.status, done.out) == (0, "synckit-streams 0.1.0\n")


def test_without_arguments_it_says_what_it_can_do(synckit: Command) -> None:
    for done in (synckit(), synckit("--help"), synckit("-h")):
        said = done.out + done.err
        assert all(name in said for name in COMMANDS)
        assert "\x1b" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples_and_json(synckit: Command, name: str) -> None:
    done = synckit(name, "--help")
    assert done.status == 0
    assert "--json" in done.out
    assert "Examples" in done.out
    assert f"$ synckit {name}" in done.out
    assert "\x1b" not in done.out


def test_a_command_that_there_is_not_ends_with_2(synckit: Command) -> None:
    done = synckit("fly")
    assert done.status == 2
    assert "fly" in done.err


def test_an_option_that_there_is_not_ends_with_2(synckit: Command) -> None:
    done = synckit("log", "--store", "sqlite:///x.db", "--colour")
    assert (done.status, done.out) == (2, "")
    assert "--colour" in done.err


def test_a_command_imports_no_other(tmp_path: Path) -> None:
    """Starting is quick: what a command does not need is not loaded."""
    code = (
        "import sys\n"
        "from synckit_streams.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "try:\n    main(['log', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = done.stderr.split()
    assert "synckit_streams.cli.log" in loaded
    unwanted = {f"synckit_streams.cli.{name}" for name in ("demo", "doctor", "importing", "syncing", "status")}
    assert not unwanted & set(loaded)
    assert not {"nats", "synckit_streams.testing.brokers"} & set(loaded)


def test_the_module_is_the_command_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "synckit_streams.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.startswith("synckit-streams ")


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    """`synckit export | head -1`: no traceback, no complaint."""
    airports = ROOT / "synckit_streams" / "cli" / "data" / "airports.csv"
    command = f"{sys.executable} -m synckit_streams.cli"
    script = (
        f"{command} import {airports} --store sqlite:///a.db --topic t --aggregate-column iata --type x >&2; "
        f"{command} export --store sqlite:///a.db | head -1; echo ${{PIPESTATUS[0]}}; "
        f"{command} log --limit 0 --store sqlite:///a.db | head -1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    event, first, line, second = done.stdout.splitlines()
    assert event.startswith('{"specversion":"1.0"')
    assert "00M" in line
    assert (first, second) == ("141", "141")
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr


def _in_a_terminal(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> bytes:
    """What a command writes to a terminal."""
    main_end, command_end = pty.openpty()
    command = [sys.executable, "-m", "synckit_streams.cli", *arguments]
    plain_env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    given = {**plain_env, "TERM": "xterm-256color", "COLUMNS": "90", **(env or {})}
    with subprocess.Popen(
        command, cwd=cwd, stdin=command_end, stdout=command_end, stderr=command_end, env=given
    ) as child:
        os.close(command_end)
        said = b""
        while True:
            try:
                more = os.read(main_end, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not more:
                break
            said += more
        child.wait(30)
    os.close(main_end)
    return said


def test_a_terminal_gets_colours_and_a_pipe_does_not(tmp_path: Path, synckit: Command) -> None:
    assert b"\x1b[" in _in_a_terminal("doctor", cwd=tmp_path)
    uncoloured = _in_a_terminal("doctor", cwd=tmp_path, env={"NO_COLOR": "1"})
    assert not re.search(rb"\x1b\[[0-9;]*[349][0-9]", uncoloured)
    assert "\x1b" not in synckit("doctor").out


def test_long_work_has_a_progress_bar_in_a_terminal(tmp_path: Path) -> None:
    airports = ROOT / "synckit_streams" / "cli" / "data" / "airports.csv"
    said = _in_a_terminal(
        *("import", str(airports), "--store", "sqlite:///a.db"),
        *("--topic", "t", "--aggregate-column", "iata", "--type", "x"),
        cwd=tmp_path,
    )
    assert b"importing" in said
    assert "━".encode() in said
    assert b"3,376 events" in said


def test_interrupting_a_command_ends_with_130(process: Callable[..., Process], tmp_path: Path) -> None:
    """Whatever it does; here it is the demo, whose server must not outlive it either."""
    demo = process("demo", "--keep", "offices", env={"PYTHONUNBUFFERED": "1"})
    while "2 " not in (line := demo.line()):  # the second scene: the server is there
        assert line
    done = demo.end(signal.SIGINT)
    assert done.status == 130
    assert "Traceback" not in done.err
    assert "Error" not in done.err


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\r\nb", "a\\r\\nb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\x9bb", "a\\x9bb"),
        ("übergröße 東京 🛫", "übergröße 東京 🛫"),
    ],
)
def test_text_from_elsewhere_is_shown_harmlessly(text: str, harmless: str) -> None:
    assert plain(text) == harmless


def test_counts_are_words() -> None:
    assert [plural(0, "event"), plural(1, "event"), plural(2000, "entry", "entries")] == [
        "0 events",
        "1 event",
        "2,000 entries",
    ]
