"""`synckit asyncapi` writes what an app says of itself; whoever mistypes its name is told what there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SHOP = '''
from synckit_streams import App, Event
app = App("billing", store="memory:", connectors=["nats://u:geheim@n:4222"])
number = 7

@app.handler("orders", "order.placed")
async def bill(event: Event) -> None:
    """Write the invoice."""
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import there_is_no_such_thing")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "synckit_streams.cli", "asyncapi", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_it_says_json_yaml_and_a_page(folder: Path) -> None:
    done = run(folder, "shop:app", "--app-version", "3.4")
    document = json.loads(done.stdout)
    assert document["info"] == {"title": "billing", "version": "3.4"}
    assert document["operations"]["billing.bill"]["summary"] == "Write the invoice."
    assert "geheim" not in done.stdout
    assert yaml.safe_load(run(folder, "shop:app", "--yaml", "--app-version", "3.4").stdout) == document
    page = run(folder, "shop:app", "--html", "--out", "asyncapi.html")
    assert page.stdout == ""
    assert page.stderr == "asyncapi.html is written\n"
    assert "Write the invoice." in (folder / "asyncapi.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shop"], "which service of the module 'shop'?"),
        (["shop.py:app"], "is a file, and not a module"),
        (["./shop.py:app"], "is a file, and not a module"),
        (["shoop:app"], "there is no module 'shoop'"),
        (["shop:ap"], "the module has app"),
        (["shop:number"], "is of 'int', and no service"),
        (["broken:app"], "ZeroDivisionError: division by zero"),
        (["needy:app"], "No module named 'there_is_no_such_thing'"),
        (["shop:app", "--html", "--yaml"], "choose one of them"),
        (["shop:app", "--out", "no/such/folder.json"], "cannot be written: No such file or directory"),
    ],
)
def test_a_mistake_is_explained(folder: Path, arguments: list[str], said: str) -> None:
    done = run(folder, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error SK100" in done.stderr
    assert said in " ".join(done.stderr.split())
    assert "importlib" not in done.stderr
