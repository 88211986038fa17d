"""What transforms make of a record; each is a pure function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import TypeAdapter, ValidationError

from synckit_streams.connect.record import Record
from synckit_streams.connect.spec import AnyTransform
from synckit_streams.connect.transforms import transform_for, transformed
from synckit_streams.errors import Invalid, SyncKitError
from tests.connect.kit import declare, events_of, from_file, letters, move_once, order, write_lines

DATA = {
    "id": 7,
    "total": 12.5,
    "vip": True,
    "customer": {"mail": "a@b.c", "name": "Ann"},
    "lines": [{"sku": "x"}],
    "no": None,
}
RECORD = Record(id="r-1", type="order.placed", aggregate_id="o-7", payload=msgspec.json.encode(DATA), topic="orders")


def through(*specs: dict[str, Any], record: Record = RECORD) -> Record | None:
    adapter: TypeAdapter[AnyTransform] = TypeAdapter(AnyTransform)
    return transformed(record, [transform_for(adapter.validate_python(spec)) for spec in specs])


def data_of(*specs: dict[str, Any]) -> Any:
    found = through(*specs)
    assert found is not None
    return found.data


@pytest.mark.parametrize(
    ("field", "op", "value", "passes"),
    [
        ("/total", "gt", 12, True),
        ("/total", "gt", 12.5, False),
        ("/total", "ge", 12.5, True),
        ("/total", "lt", "13", False),  # a number and a text have no order
        ("/customer/name", "le", "Ann", True),
        ("/nowhere", "lt", 1, False),
        ("/vip", "eq", True, True),
        ("/vip", "eq", 1, False),  # in JSON true is not 1
        ("/vip", "gt", 0, False),
        ("/lines/0/sku", "eq", "x", True),
        ("/lines/1/sku", "exists", None, False),
        ("/no", "exists", None, True),
        ("/no", "eq", None, True),
        ("/nowhere", "eq", None, False),
        ("/nowhere", "ne", 1, True),
        ("/nowhere", "missing", None, True),
        ("/id", "in", [6, 7], True),
        ("/id", "not_in", [6, 7], False),
        ("type", "matches", "order.*", True),
        ("type", "matches", "Order.*", False),
        ("aggregate_id", "eq", "o-7", True),
        ("topic", "ne", "orders", False),
    ],
)
def test_a_filter_lets_through_what_fulfils_it(field: str, op: str, value: Any, passes: bool) -> None:
    spec = {"kind": "filter", "field": field, "op": op, "value": value}
    assert (through(spec) is RECORD) == passes


def test_what_nobody_changes_keeps_its_bytes() -> None:
    """White space, the order of keys, how a number is written."""
    record = msgspec.structs.replace(RECORD, payload=b'{ "b":1e3, "a":1.0 }')
    specs: list[dict[str, Any]] = [
        {"kind": "filter", "field": "/a", "op": "eq", "value": 1},
        {"kind": "mask", "fields": ["/nowhere"]},
    ]
    found = through(*specs, record=record)
    assert found is record


def test_a_map_renames_then_sets_then_drops() -> None:
    spec = {
        "kind": "map",
        "rename": {"/customer/mail": "/contact/mail", "/nowhere": "/x", "/customer/name": "aggregate_id"},
        "set": {"/source": "shop", "type": "order.imported", "topic": "imported", "/lines/0/sku": 1},
        "drop": ["/vip", "/nowhere/else", "/no"],
    }
    found = through(spec)
    assert found is not None
    assert found.data == {
        "id": 7,
        "total": 12.5,
        "customer": {},
        "lines": [{"sku": 1}],
        "contact": {"mail": "a@b.c"},
        "source": "shop",
    }
    assert (found.type, found.aggregate_id, found.routed, found.id) == ("order.imported", "Ann", "imported", "r-1")
    assert RECORD.data == DATA


@pytest.mark.parametrize("target", ["/total/x", "/lines/5", "/lines/x/y"])
def test_a_map_that_cannot_put_it_there_says_so(target: str) -> None:
    with pytest.raises(Invalid, match="nothing can be put"):
        through({"kind": "map", "set": {target: 1}})


def test_a_route_takes_the_first_pattern_that_fits() -> None:
    routes = {"order.p*": "placed", "order.*": "others"}
    found = through({"kind": "route", "routes": routes})
    assert found is not None
    assert found.routed == "placed"
    found = through({"kind": "route", "field": "/total", "routes": {"12.5": "exact"}})
    assert found is not None
    assert found.routed == "exact"
    found = through({"kind": "route", "field": "/nowhere", "routes": {"*": "any"}, "otherwise": "rest"})
    assert found is not None
    assert found.routed == "rest"
    with pytest.raises(Invalid, match="no route for type"):
        through({"kind": "route", "routes": {"return.*": "returns"}})


def test_a_mask_hides_what_was_there() -> None:
    """A hash needs the key to be guessed at; equal values stay equal, and nothing else is kept."""
    assert data_of({"kind": "mask", "fields": ["/customer/mail", "/nowhere"]})["customer"] == {
        "mail": "***",
        "name": "Ann",
    }
    one, two, other = (
        data_of({"kind": "mask", "how": "hash", "key": key, "fields": ["/customer"]})["customer"] for key in "aab"
    )
    assert one == two != other
    assert len(one) == 32
    assert "Ann" not in str(one)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "mask", "how": "hash", "fields": ["/x"]},
        {"kind": "filter", "field": "nothing", "op": "exists"},
        {"kind": "filter", "field": "/x", "op": "in", "value": 3},
        {"kind": "filter", "field": "/x", "op": "lt", "value": True},
        {"kind": "map", "set": {"id": "x"}},
        {"kind": "map", "drop": ["x"]},
        {"kind": "route", "routes": {}},
    ],
)
def test_what_cannot_work_is_refused_with_the_file(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        through(spec)


def test_data_that_is_no_json_cannot_be_transformed() -> None:
    record = msgspec.structs.replace(RECORD, payload=b"\xff")
    with pytest.raises(SyncKitError, match="SK204"):
        through({"kind": "filter", "field": "/x", "op": "exists"}, record=record)


async def test_a_map_may_say_the_topic(tmp_path: Path) -> None:
    """The node of the sink then takes part in that one."""
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    transforms = [{"kind": "map", "set": {"topic": "imported"}}]
    sink = {"kind": "topic", "connector": "nats://127.0.0.1:1"}
    (standing,) = await move_once(declare(tmp_path, from_file(sink=sink, transforms=transforms)))
    assert (standing.moved, standing.dead) == (1, 0)
    (event,) = await events_of(f"sqlite:///{tmp_path}/pipelines.state/in.sink.db")
    assert event.topic == "imported"


async def test_in_a_pipeline(tmp_path: Path) -> None:
    """What is passed over goes nowhere, and what a transform cannot do goes to the dead letter with the original."""
    write_lines(tmp_path / "orders.jsonl", [order(n, kind=kind) for n, kind in enumerate(["a", "b", "test", "c"])])
    transforms = [
        {"kind": "filter", "field": "type", "op": "ne", "value": "test"},
        {"kind": "map", "set": {"/by": "us"}},
        {"kind": "route", "routes": {"a": "first", "b": "second"}},
    ]
    (standing,) = await move_once(declare(tmp_path, from_file(transforms=transforms)))
    assert (standing.moved, standing.dead) == (2, 1)
    events = await events_of(f"sqlite:///{tmp_path}/shop.db")
    assert [(event.topic, event.data["by"]) for event in events] == [("first", "us"), ("second", "us")]
    (dead,) = letters(tmp_path / "pipelines.state" / "in.dead.jsonl")
    assert "by" not in msgspec.json.decode(dead["original"]["raw"])
