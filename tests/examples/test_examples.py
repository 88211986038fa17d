"""The examples run, and say what they are there to show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
SAYS = {
    "01_offline_and_back.py": [
        "offline: SK401, can be tried again: True",
        "till-7 sent 3, complete: True",
        "office took 3, complete: True",
        "  o-1 {'total': 5}",
        "  o-2 {'total': 12}",
        "  o-3 {'total': 7}",
    ],
    "02_conflicts.py": [
        "same events: True",
        'heads: ["shop\'s", "depot\'s"]',
        "last-write-wins: {'price': 5, 'sold': 2, 'tags': ['green']}",
        "first-write-wins: {'price': 5, 'sold': 2, 'tags': ['green']}",
        "additive-merge: {'price': 5, 'sold': 5, 'tags': ['hot', 'new', 'green']}",
        "highest-price: {'price': 6, 'sold': 3, 'tags': ['hot', 'new']}",
        "heads after the decision: ['decided']",
    ],
    "03_read_model.py": [
        "both: {'Ada': 5, 'Bob': 7}",
        "depot, offline: {'Ada': 50, 'Bob': 7}",
        "shop, offline: {'Bob': 13}",
        "depot: {'Bob': 13}",
        "shop: {'Bob': 13}",
    ],
    "04_ingest.py": [
        "3 read, 2 written, 1 set aside",
        "why: [SK205] there is nothing at /order/id",
        "once more: 0 read",
        "  o-1 5",
        "  o-2 7",
    ],
    "05_bridge.py": [
        "hub took 2, sent 2, complete: True",
        "shop-north: n-1, s-1",
        "shop-south: n-1, s-1",
        "a second meeting sends 0",
    ],
    "06_nats.py": [
        "office took 3, complete: True",
        "equal: True",
        "somebody else reads:",
        '  sale.made receipt/0 {"total":0}',
        '  sale.made receipt/1 {"total":1}',
        '  sale.made receipt/2 {"total":2}',
    ],
    "07_kafka.py": [
        "billing took 3, complete: True",
        "somebody else reads:",
        '  order.placed o-0 {"total":0}',
        '  order.placed o-1 {"total":1}',
        '  order.placed o-2 {"total":2}',
    ],
    "08_redis.py": [
        "depot has {'pieces': 12}",
        "somebody else reads:",
        '  stock.counted A-7 {"pieces":12}',
    ],
    "09_connect.py": [
        "orders: stopped, moved 2, dead 1",
        "orders: stopped, moved 0, dead 0",
        "  order.placed o-1 ***",
        "  order.paid o-1 without mail",
        "dead: this is no JSON",
    ],
    "10_service.py": [
        "o-1: an invoice to Ada",
        "o-2: an invoice to Bob",
        "o-3: an invoice to Ada",
        "o-4: given up at attempt 1",
        "owed: {'Ada': 1200, 'Bob': 250000}",
        "o-5: an invoice to Bob",
        "owed: {'Ada': 1200, 'Bob': 250001}",
    ],
    "15_faststream.py": [
        "billed o-1: 100 cents",
        "billed o-3: 300 cents",
        "invoices: ['o-1', 'o-3']",
        "dead letter: o-2 3 RuntimeError: a negative amount",
        "bills: [('o-1', 100), ('o-3', 300)]",
    ],
}


def test_every_example_is_tried() -> None:
    assert sorted(SAYS) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.nats
@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    """With warnings as errors: an example is copied."""
    command = [sys.executable, "-W", "error", str(FOLDER / name)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == SAYS[name]
    assert list(tmp_path.iterdir()) == []


def test_the_readme_says_what_each_shows_and_how_to_run_it() -> None:
    text = (FOLDER / "README.md").read_text()
    assert all(f"| `python examples/{name}` | " in text for name in SAYS)
    assert "(shop/README.md)" in text
