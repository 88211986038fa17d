"""The example service runs by the commands of its README, and its sums are right whatever is killed."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from synckit_streams.errors import MissingDependency
from synckit_streams.testing.pytest_plugin import lacking
from synckit_streams.testing.server import find_binary
from tests.examples.shop import README, SHOP, Shop, free_port, shown_under

ROOT = SHOP.parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((SHOP / "compose.yaml").read_text())
Open = Callable[..., Shop]

LOT = 100
PLACE = f"python orders.py place {LOT} --cancel-every 10"
PRICES = (350, 420, 510)
PLACED = [PRICES[number % 3] for lot in (500, *[LOT] * 4) for number in range(lot)]
CANCELLED = [PRICES[number % 3] for lot in (500, *[LOT] * 4) for number in range(0, lot, 10)]
TOTAL = (
    f"{len(PLACED)} orders of {sum(PLACED)} cents, {len(PLACED)} invoices of {sum(PLACED)} cents; "
    f"{len(CANCELLED)} cancelled, {len(CANCELLED)} invoices taken back; 0 given up"
)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Open]:
    opened: list[Shop] = []

    def make(**instead: str) -> Shop:
        opened.append(Shop(tmp_path, instead))
        return opened[-1]

    yield make
    for each in opened:
        each.destroy()


def test_it_runs_with_nothing_but_python(shop: Open) -> None:
    """Word for word, but for the ports."""
    if find_binary("nats-server", "SYNCKIT_NATS_SERVER") is None:
        lacking(str(MissingDependency("there is no nats-server on this machine")))
    port = free_port()
    made = shop(**{"-sd nats-data": f"-sd nats-data -p {port}"})
    made.run(f"export BROKER=nats://127.0.0.1:{port}", [])
    for command, expected in shown_under("With nothing but Python"):
        if command == "python sales.py":
            made.until("the read model has followed", partial(says, made, totals(expected)))
        made.run(command, expected)
    assert {name: status for name, status in made.end().items() if name.endswith(":app")} == {
        "billing:app": 0,
        "sales:app": 0,
    }


async def bills(url: str) -> tuple[int, int, int]:
    """Rows, their sum, and how many are cancelled."""
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT to_regclass('invoices')") is None:
            return 0, 0, 0
        row = await connection.fetchrow(
            "SELECT count(*), coalesce(sum(cents), 0), count(*) FILTER (WHERE cancelled) FROM invoices"
        )
        return tuple(row)
    finally:
        await connection.close()


@pytest.mark.timeout(300)
async def test_it_runs_with_kafka_and_postgresql_whatever_is_killed(
    shop: Open, database: str, own_kafka_url: str
) -> None:
    """The README's commands; meanwhile workers are killed in the middle of their work, and then all of billing."""
    made = shop(**{
        "kafka://127.0.0.1:9092": own_kafka_url,
        "postgresql://postgres@127.0.0.1:5432/postgres": database,
    })  # fmt: skip
    shown = shown_under("With Kafka and PostgreSQL")
    for command, expected in shown:
        if "status --wait" in command:
            break
        made.run(command, expected)
    await billed(made, database, 1)
    for lot in range(3):
        made.run(PLACE, [])
        begun, _, _ = await bills(database)
        assert begun < 500 + LOT * (lot + 1), "the work was done before anybody could be killed"
        made.until("two workers", lambda: len(made.workers("billing:app")) == 2)
        for pid in made.workers("billing:app")[: lot + 1]:
            os.kill(pid, signal.SIGKILL)
        await billed(made, database, begun + 1)
    made.run(PLACE, [])
    made.kill("billing:app")
    made.run(next(command for command, _ in shown if "billing:app" in command), [])
    made.run("python orders.py status --wait", [TOTAL])
    assert await bills(database) == (len(PLACED), sum(PLACED), len(CANCELLED))
    left = (len(PLACED) - len(CANCELLED), sum(PLACED) - sum(CANCELLED))
    made.until("sales says the same", partial(says, made, left))
    assert made.end() == {"billing:app": 0, "sales:app": 0}


async def billed(made: Shop, database: str, count: int) -> None:
    """Until so many are."""
    rows = 0
    while rows < count:
        rows, _, _ = await bills(database)


def sold(made: Shop) -> tuple[int, int]:
    """Pieces and cents, as the report says."""
    done = subprocess.run([sys.executable, "sales.py"], cwd=made.folder, capture_output=True, text=True, check=True)
    return totals(done.stdout.splitlines())


def says(made: Shop, wanted: tuple[int, int]) -> bool:
    """Whether the report has come to that."""
    return sold(made) == wanted


def totals(report: Sequence[str]) -> tuple[int, int]:
    """Pieces and cents of a report."""
    lines = [re.fullmatch(r"(\w+) +(\d+) pieces +(\d+) cents", line) for line in report]
    return sum(int(line[2]) for line in lines if line), sum(int(line[3]) for line in lines if line)


def test_its_own_tests_pass(shop: Open) -> None:
    for command, expected in shown_under("Test it"):
        shop().run(command, expected)


# --- with Docker, as far as that can be seen without it ---------------------------------------------------------------


def test_the_compose_file_fits_the_schema_of_compose_files() -> None:
    command: list[str] = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(SHOP / "compose.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["billing", "sales", "till"])
def test_what_the_compose_file_names_is_there(name: str) -> None:
    """Variables that somebody reads, volumes that are declared, modules that are mounted, services that exist."""
    service = COMPOSE["services"][name]
    read = re.findall(r'os\.environ\.get\("(\w+)"', (SHOP / "settings.py").read_text())
    assert set(service["environment"]) <= set(read)
    for volume in service["volumes"]:
        source, target = volume.split(":")[:2]
        assert (source == "." and target == "/app") or source in COMPOSE["volumes"]
    assert set(service["depends_on"]) <= set(COMPOSE["services"])
    assert all("healthcheck" in COMPOSE["services"][other] for other in service["depends_on"])
    build = service["build"]
    context = (SHOP / build["context"]).resolve()
    assert (context, (context / build["dockerfile"]).is_file()) == (ROOT, True)
    command: list[str] = service["command"]
    if command[0] == "synckit":
        module, _, found = command[2].partition(":")
        assert f"{found} = App(" in (SHOP / f"{module}.py").read_text()
        assert "8000" in command
        assert ":8000/health/ready" in service["healthcheck"]["test"][-1]
    else:
        assert (SHOP / command[1]).is_file()


def test_the_commands_with_docker_name_services_and_files_that_are_there() -> None:
    for command, _ in shown_under("With Docker"):
        words = command.split()
        assert words[:2] == ["docker", "compose"]
        named = {word for word in words[3:] if word.isalpha() and word not in ("place", "status", "python")}
        assert named <= set(COMPOSE["services"])
        assert all((SHOP / word).is_file() for word in words if word.endswith(".py"))


def test_the_image_has_what_the_wheel_needs(tmp_path: Path) -> None:
    """What the Dockerfile copies, and its ignore file lets through, makes a wheel that is whole."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE) for word in line.split()]
    allowed = re.findall(r"^!(.+)$", (ROOT / "docker" / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(allowed)
    source = tmp_path / "source"
    source.mkdir()
    for name in copied:
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, capture_output=True, check=True)
    assert list(tmp_path.glob("*.whl"))
    extras = re.search(r"'\.\[(.+)\]'", text)
    assert extras
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras[1].split(","))


def test_its_readme_names_every_file() -> None:
    text = README.read_text()
    for path in SHOP.glob("*.py"):
        ast.parse(path.read_text())
        assert f"`{path.name}`" in text
