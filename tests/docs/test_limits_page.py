"""The page of limits says the figures that the code has, leaves none out, and is right about what happens beyond."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from synckit_streams import Draft, Key, SyncKitError, SyncNode, VersionVector, errors
from synckit_streams.model import clock, codec
from synckit_streams.stores.postgres import PostgresStore
from synckit_streams.stores.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "limits.md").read_text(encoding="utf-8")
UNITS = {"KiB": 1024, "MiB": 1024**2}

INTERNAL = {
    "model.cloudevent.attributes.SOURCE_CHARS_MAX": "what the longest topic and origin need, twice",
    "sync.drafts.ORIGIN_BYTES_MAX": "what the context keeps free for its writer",
    "sync.drafts.PLAIN_BYTES_MAX": "which way a payload is encoded",
    "sync.places.RUN_EVENTS_MAX": "how places are stored",
    "stores.kv_reading.LOOKS_MAX": "how often a key is looked up that has just moved",
    "stores.kv_runs.RUN_MAX": "how the indexes by key and id are stored",
    "stores.redis_medium.TRIES_MAX": "how often a commit is sent that did not arrive",
    "stores.rocksdb_medium.CATCH_UP_MAX": "how often a reader tries to catch up with a writer",
    "stores.place_rows.LAST_MAX": "how places are stored",
    "stores.place_rows.UNEVEN_MAX": "how places are stored",
    "stores.postgres.NEWS_MAX": "how a mirror is brought up to date",
    "stores.tail.PAIRS_UNSORTED_MAX": "how the index by aggregate is filled",
    "memory.GOOD_NAMES_MAX": "a cache of names",
    "nats_jetstream.GOOD_NAMES_MAX": "a cache of names",
    "nats_options.HEARTBEAT_S_MAX": "an option's, in docs/how-to/nats.md",
    "runtime.membership.MARKS_MAX": "what a member remembers of its own commits",
    "cli.running.CHANGED_SHOWN_MAX": "what a command shows",
    "cli.syncing.RANGES_SHOWN_MAX": "what a command shows",
    "cli.importing.BAD_SHOWN_MAX": "what a command shows",
    "cli.importing.BAD_KEPT_MAX": "what a command shows",
    "cli.story.MEETINGS_MAX": "of the demo",
    "cli.holdings.CONFLICTS_NAMED_MAX": "what a command shows",
}
"""Limits that nobody outside meets, and why."""


class Row(NamedTuple):
    """One limit: its figure as written, what happens beyond it, and where the figure stands."""

    what: str
    figure: str
    beyond: str
    place: str


def rows() -> Iterator[Row]:
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith("| what |"):
            what, figure, beyond, place = (cell.strip() for cell in line.split("|")[1:-1])
            yield Row(what, figure, beyond, place.strip("`"))


ROWS = list(rows())
CONSTANTS = [row for row in ROWS if "(" not in row.place]
PARAMETERS = [row for row in ROWS if "(" in row.place]


def amounts(text: str) -> list[float]:
    """Every number in a text, in its unit: `10,000`, `16 KiB`, `2^63 − 1`, `2.8 s`."""
    found = [float(2 ** int(power) - 1) for power in re.findall(r"2\^(\d+) − 1", text)]
    for number, unit in re.findall(r"(?<![\^\d])(\d[\d,]*(?:\.\d+)?)(?: (KiB|MiB))?", text):
        found.append(float(number.replace(",", "")) * UNITS.get(unit, 1))
    return found


def constant(place: str) -> Any:
    """`model.codec.TOPIC_BYTES_MAX`, or `memory.BYTES_MAX` of a connector."""
    module, _, name = place.rpartition(".")
    package = "synckit_streams" if "." in module else "synckit_connectors"
    return getattr(importlib.import_module(f"{package}.{module}"), name)


@pytest.mark.parametrize("row", CONSTANTS, ids=lambda row: row.place)
def test_the_figure_is_the_constant(row: Row) -> None:
    assert float(constant(row.place)) in amounts(row.figure)


@pytest.mark.parametrize("row", PARAMETERS, ids=lambda row: row.place)
def test_the_figure_is_the_default(row: Row) -> None:
    (owner, method, parameter), called = re.findall(r"(\w+)\.?(\w*)\((\w+)=…\)", row.place)[0], SyncNode
    kind: Any = {"SyncNode": SyncNode, "SqliteStore": SqliteStore, "PostgresStore": PostgresStore}[owner]
    called = getattr(kind, method) if method else kind
    assert amounts(row.figure) == [float(inspect.signature(called).parameters[parameter].default)]


def test_no_limit_is_left_out() -> None:
    """Every constant of the shipped code that says MAX in its name, but for those that only its own module knows."""
    found: set[str] = set()
    for folder in (ROOT / "synckit_streams", ROOT / "connectors" / "synckit_connectors"):
        for path in folder.rglob("*.py"):
            module = ".".join(path.relative_to(folder).with_suffix("").parts)
            if not module.startswith("testing"):
                names = re.findall(r"^([A-Z][A-Z0-9_]*_MAX)\b[^=\n]*= ", path.read_text(encoding="utf-8"), re.MULTILINE)
                found |= {f"{module}.{name}" for name in names}
    assert found - set(INTERNAL) == {row.place for row in CONSTANTS if row.place.endswith("_MAX")}
    assert set(INTERNAL) <= found


def test_the_errors_have_the_codes_that_the_page_gives_them() -> None:
    named = set(re.findall(r"`(\w+)` \((SK\d+)\)", PAGE))
    assert named
    assert {(name, getattr(errors, name).code) for name, _ in named} == named


# ------------------------------------------------------------------------------------------------ what happens beyond


def beyond(what: str) -> str:
    (row,) = [row for row in ROWS if row.what == what]
    found = re.search(r"\((SK\d+)\)", row.beyond)
    assert found
    return found[1]


def draft(**changes: Any) -> Draft:
    return Draft(**{"topic": "orders", "type": "t", "aggregate_id": "o-1", "data": None} | changes)


LETTERS: dict[str, tuple[str, int]] = {
    "type": ("an event's type, and its id", codec.NAME_BYTES_MAX),
    "id": ("an event's type, and its id", codec.NAME_BYTES_MAX),
    "topic": ("a topic", codec.TOPIC_BYTES_MAX),
    "aggregate_id": ("an aggregate id", codec.AGGREGATE_ID_CHARS_MAX),
}


@pytest.mark.parametrize("field", LETTERS)
async def test_a_name_may_be_as_long_as_the_page_says_and_no_longer(field: str) -> None:
    what, most = LETTERS[field]
    async with SyncNode("till-7", store="memory:") as node:
        await node.append(draft(**{field: "x" * most}))
        with pytest.raises(SyncKitError) as raised:
            await node.append(draft(**{field: "x" * (most + 1)}))
    assert raised.value.code == beyond(what)


async def test_data_may_be_as_large_as_the_page_says_and_no_larger() -> None:
    """So may metadata, causes, a context and a number."""
    keys = [Key("else", "till-9@a", seq) for seq in range(1, codec.AFTER_KEYS_MAX + 2)]
    vector = VersionVector({f"till-{number}@{'x' * 60}": 1 for number in range(300)})
    most, empty = codec.METADATA_BYTES_MAX, len('{"m":""}')
    quotes = 2
    wrong: list[tuple[str, dict[str, Any]]] = [
        (
            "the data, as JSON or as the bytes that were given",
            {"data": "x" * (codec.PAYLOAD_BYTES_MAX - quotes + 1)},
        ),
        ("the metadata, as JSON", {"metadata": {"m": "x" * (most - empty + 1)}}),
        ("causes in `after`", {"after": tuple(keys)}),
        ("the context", {"context": vector}),
        ("a schema version", {"schema_version": 2**31}),
        ("a number of an event, a counter in a vector, a position", {"after": (Key("e", "o", clock.COUNTER_MAX + 1),)}),
    ]
    async with SyncNode("till-7", store="memory:") as node:
        await node.append(draft(data="x" * (codec.PAYLOAD_BYTES_MAX - quotes), metadata={"m": "x" * (most - empty)}))
        for what, changes in wrong:
            with pytest.raises(SyncKitError) as raised:
                await node.append(draft(**changes))
            assert raised.value.code == beyond(what), what
        assert (await node.store.end()).position == 1


def test_a_node_id_may_be_as_long_as_the_page_says_and_no_longer() -> None:
    """The hint names the page."""
    SyncNode("x" * codec.NODE_ID_BYTES_MAX, store="memory:")
    with pytest.raises(SyncKitError, match=re.escape("docs/reference/limits.md")) as raised:
        SyncNode("x" * (codec.NODE_ID_BYTES_MAX + 1), store="memory:")
    assert raised.value.code == beyond("a node id")
