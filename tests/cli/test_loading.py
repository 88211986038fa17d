"""`MODULE:NAME`, and what is said when it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from synckit_streams import ConfigError, StoreNotFound
from synckit_streams.cli.loading import load

MODULES = {
    "load_fine": "from tests.cli.services import Steady\nclass Shop:\n    app = Steady('shop')\napp = Shop.app\n",
    "load_raises": "def check():\n    raise ValueError('no such setting')\n\ncheck()\n",
    "load_imports": "import a_module_that_is_not_there\n",
    "load_exits": "import sys\nsys.exit('no')\n",
    "load_syntax": "app = (\n",
    "load_ours": "from synckit_streams import SyncNode\napp = SyncNode('till', store='nosuch://x')\n",
    "load_other": "class App: ...\ndef make(): ...\nnumber = 7\napplication = 1\n",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])


@pytest.mark.parametrize("target", ["load_fine:app", "load_fine:Shop.app"])
def test_a_service_of_the_working_directory_is_found(target: str) -> None:
    assert load(target).name == "shop"


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("load_fine", "which service of the module 'load_fine'", "write load_fine:app"),
        ("load_fine.py:app", "is a file, and not a module", "write load_fine:app"),
        ("./shop/billing.py", "is a file, and not a module", "write shop.billing:app"),
        ("", "names no service", "MODULE:NAME"),
        ("load_fine:app:x", "names no service", "MODULE:NAME"),
        ("nosuch:app", "there is no module 'nosuch'", "run it from the folder"),
        ("load_fine.sub:app", "there is no module 'load_fine.sub'", "run it from the folder"),
        ("load_fine:ap", "has no 'ap'", "the module has app"),
        ("load_other:applicatio", "has no 'applicatio'", "did you mean application?"),
        ("load_other:App", "is a class, and no service", "a service is made in the module"),
        ("load_other:make", "is a function, and no service", "a service is made in the module"),
        ("load_other:number", "is of 'int', and no service", "a service is made in the module"),
    ],
)
def test_what_is_wrong_with_a_target_is_said_with_what_to_write(target: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(target)
    assert message in raised.value.message
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        ("load_raises", ["line 4, in <module>", "line 2, in check", "ValueError: no such setting"]),
        ("load_imports", ["line 1, in <module>", "No module named 'a_module_that_is_not_there'"]),
        ("load_exits", ["line 2, in <module>", "SystemExit: no"]),
        ("load_syntax", ["load_syntax.py", "line 1", "SyntaxError"]),
    ],
)
def test_what_a_module_raises_is_shown_from_its_own_first_line_on(module: str, shown: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"'{module}' cannot be imported") as raised:
        load(f"{module}:app")
    assert all(each in raised.value.message for each in shown)
    assert "importlib" not in raised.value.message
    assert "loading.py" not in raised.value.message


def test_an_error_of_ours_is_told_as_it_is() -> None:
    """With its code and its hint."""
    with pytest.raises(StoreNotFound):
        load("load_ours:app")
