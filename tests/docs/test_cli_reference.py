"""The reference of the command line names every command and every option, and none that there is not."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from synckit_streams.cli import root

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([a-z]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
COMMON = {"--help", "-h", "--json", "--store"}


def options(name: str) -> set[str]:
    group = typer.main.get_command(root.application(name))
    commands = group.commands  # type: ignore[attr-defined]
    return {option for parameter in commands[name].params for option in parameter.opts if option.startswith("-")}


def test_every_command_has_a_section() -> None:
    assert list(SECTIONS) == [name for name, _, _ in root.COMMANDS]
    for name in SECTIONS:
        assert f"| [`{name}`](#{name}) |" in PAGE


@pytest.mark.parametrize("name", [name for name, module, _ in root.COMMANDS if find_spec(module) is not None])
def test_a_section_names_every_option_and_no_other(name: str) -> None:
    section = re.sub(r"^```.*?^```$", "", SECTIONS[name], flags=re.MULTILINE | re.DOTALL)
    table = "\n".join(line for line in section.splitlines() if line.startswith("| `-"))
    named = set(re.findall(r"`(--?[a-z-]+)", table))
    assert options(name) - COMMON <= named <= options(name)
