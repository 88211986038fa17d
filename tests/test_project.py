"""What a user installs: the wheel has everything it needs, and the core needs no optional library."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What the extras bring, by import name: nothing of it may be needed, or touched, by an import of the core.
OPTIONAL = [
    *("aiohttp", "aiokafka", "asyncpg", "confluent_kafka", "fast_depends", "faststream", "hypothesis", "nats"),
    *("opentelemetry", "prometheus_client", "pydantic", "pydantic_settings", "pytest", "redis", "rocksdict"),
    *("starlette", "testcontainers", "uvicorn", "yaml"),
]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the source distribution of this tree."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", directory)
    return directory


@pytest.fixture
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_both_packages_whole(wheel: zipfile.ZipFile) -> None:
    """Every module of the tree, the mark that it is typed, and nothing at the top level besides."""
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "synckit_streams").rglob("*.py")}
    wanted |= {
        str(path.relative_to(ROOT / "connectors"))
        for path in (ROOT / "connectors" / "synckit_connectors").rglob("*.py")
    }
    assert wanted <= names
    assert "synckit_streams/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"synckit_streams", "synckit_connectors"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_has_the_demos_records_and_where_they_are_from(wheel: zipfile.ZipFile) -> None:
    lines = wheel.read("synckit_streams/cli/data/airports.csv").decode().splitlines()
    airports = list(csv.DictReader(lines))
    assert len(airports) == 3376
    assert len({airport["iata"] for airport in airports}) == 3376
    assert list(airports[0]) == ["iata", "name", "city", "state", "country", "latitude", "longitude"]
    assert "public domain" in wheel.read("synckit_streams/cli/data/NOTICE.md").decode()


def test_the_wheel_has_the_licence_and_the_entry_points(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    for group in (
        "console_scripts",
        "pytest11",
        "synckit_streams.connectors",
        "synckit_streams.stores",
    ):
        assert f"[{group}]" in entry_points
    assert "synckit = synckit_streams.cli:main" in entry_points


def test_the_source_distribution_builds_without_the_repository(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "synckit_streams/errors.py"} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/"))]


def test_every_entry_point_is_there() -> None:
    """A connector, a store or a command that pyproject.toml names can be loaded."""
    groups = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    for group, wanted in groups.items():
        found = {
            entry.name: entry
            for entry in importlib.metadata.entry_points(group=group)
            if entry.dist is not None and entry.dist.name == PROJECT["name"]
        }
        assert {name: entry.value for name, entry in found.items()} == wanted
        for entry in found.values():
            entry.load()


def test_all_is_every_extra_but_test(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    message = Parser().parsestr(wheel.read(metadata).decode())
    extras = set(message.get_all("Provides-Extra", []))
    requirement = re.fullmatch(r"synckit-streams\[(.*)\]", PROJECT["optional-dependencies"]["all"][0])
    assert requirement is not None
    assert set(requirement[1].split(",")) == extras - {"all", "test"}


# Refuses to import what an install without extras does not have, then imports what that install promises to run.
CORE_ONLY = """
import importlib, importlib.abc, sys
optional = set(sys.argv[1].split(","))
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in optional:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    "name", ["synckit_streams", "synckit_streams.testing", "synckit_streams.testing.brokers", "synckit_streams.cli"]
)
def test_the_core_imports_where_no_extra_is_installed(name: str) -> None:
    run(sys.executable, "-c", CORE_ONLY, ",".join(OPTIONAL), name)


def test_a_contract_suite_without_its_tools_says_what_to_install() -> None:
    """`synckit_streams.testing` itself is part of every installation; pytest and hypothesis are not."""
    ask = "__import__('synckit_streams.testing', fromlist=['StoreContract'])"
    code = CORE_ONLY + f"try: {ask}.StoreContract\nexcept Exception as error: print(type(error).__name__, error)"
    said = run(sys.executable, "-c", code, "pytest,hypothesis", "synckit_streams.testing")
    assert said.startswith("MissingDependency")
    assert "pip install 'synckit-streams[test]'" in said
    import synckit_streams.testing as testing

    assert {name for name in testing.__all__ if getattr(testing, name).__name__ == name} == set(testing.__all__)
    assert set(testing.__all__) <= set(dir(testing))


def test_an_import_of_the_core_touches_no_optional_library_that_is_installed() -> None:
    """Also where an extra is installed: an import that is not needed costs every start of every command."""
    loaded = run(
        sys.executable, "-c", "import synckit_streams, sys; print(*{n.partition('.')[0] for n in sys.modules})"
    )
    assert "synckit_streams" in loaded.split()
    assert set(loaded.split()) & {*OPTIONAL, "typer", "rich"} == set()


def test_folders_that_are_no_packages_hide_nobodys_package() -> None:
    """A top-level `docker` or `connectors` with an __init__.py would hide other libraries of that name."""
    assert [
        name for name in ("docker", "docs", "examples", "connectors") if (ROOT / name / "__init__.py").exists()
    ] == []


@pytest.mark.slow
def test_the_wheel_alone_runs_in_a_new_environment(built: Path, tmp_path: Path) -> None:
    """pip install, without extras: the library imports and the command says what it can do."""
    (path,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", path)
    run(python, "-c", "import synckit_streams, synckit_streams.testing, synckit_connectors.memory", cwd=tmp_path)
    assert "simulate" in run(tmp_path / "venv" / "bin" / "synckit", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_an_editable_install_has_both_packages(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", ROOT)
    where = "import synckit_streams as s, synckit_connectors as c; print(s.__file__, c.__file__)"
    assert run(python, "-c", where, cwd=tmp_path).split() == [
        str(ROOT / "synckit_streams" / "__init__.py"),
        str(ROOT / "connectors" / "synckit_connectors" / "__init__.py"),
    ]


def test_a_wheel_in_the_environment_puts_its_server_beside_python() -> None:
    """The embedded extra: the server is found although the environment is not activated."""
    code = "from synckit_streams.testing.brokers import find_binary; print(find_binary('nats-server'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PATH": "/nowhere"}, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == Path(sys.executable).parent / "nats-server"
