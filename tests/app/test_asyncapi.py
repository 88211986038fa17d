"""The document of an app is valid, says what the app receives and sends, and gives no secret away."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest
import yaml
from pydantic import BaseModel, Field

from synckit_connectors.kafka_wire import log_of
from synckit_streams import App, ConfigError, Depends, Draft, Event, HandlerContext, Invalid
from synckit_streams.app.asyncapi import Sends, as_json, as_yaml, asyncapi
from synckit_streams.app.asyncapi_page import to_html
from synckit_streams.model.cloudevent import KAFKA_PREFIX, to_headers
from synckit_streams.model.cloudevent.attributes import ATTRIBUTES
from synckit_streams.ports.projection import Batch
from synckit_streams.ports.store import Transaction
from synckit_streams.testing.pytest_plugin import lacking

PARSER = Path(sys.prefix) / "share" / "asyncapi"
SCRIPT = Path(__file__).with_name("judge_asyncapi.cjs")

Judge = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="session")
def judge() -> Judge:
    """What AsyncAPI's own parser says of a document."""
    node = shutil.which("node")
    if node is None or not (PARSER / "node_modules" / "@asyncapi" / "parser").is_dir():
        lacking("there is no AsyncAPI parser: `make asyncapi-parser` fetches it, with npm")
        raise AssertionError("unreachable")
    program = node

    def judged(document: dict[str, Any]) -> dict[str, Any]:
        said = subprocess.run(
            [program, SCRIPT], cwd=PARSER, input=as_json(document), capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(said.stdout)
        # 3.0 is what most tools read, and is asked for on purpose.
        found["wrong"] = [each for each in found["wrong"] if each["code"] != "asyncapi-latest-version"]
        return found

    return judged


class Line(BaseModel):
    sku: str
    count: int = Field(gt=0, description="How many <b>of them</b>")


class Card(BaseModel):
    by: Literal["card"]
    number: str


class Cash(BaseModel):
    by: Literal["cash"]
    coins: tuple[int, str]


class OrderPlaced(BaseModel):
    """An order came in."""

    order_id: str
    lines: list[Line]
    paid: Annotated[Card | Cash, Field(discriminator="by")]
    schema_version: ClassVar[int] = 2


class Cancelled(msgspec.Struct):
    order_id: str
    why: str = ""


@dataclass
class Invoice:
    order_id: str
    cents: int


@dataclass
class Tree:
    name: str
    below: list[Tree]


def shop(*connectors: str, **more: Any) -> App:
    app = App("billing", store="memory:", connectors=connectors, **more)

    @app.handler("orders", "order.placed", dead_letter="orders.dlq")
    async def bill(
        order: OrderPlaced, ctx: HandlerContext, db: str = Depends(lambda: "db")
    ) -> Annotated[Draft, Sends("invoices", "invoice.written", Invoice)]:
        """Write the invoice.

        One for each order, and <script>never</script> two.
        """
        return Draft("invoices", "invoice.written", order.order_id)

    @app.handler("orders", "order.cancelled")
    async def cancel(order: Cancelled) -> list[Annotated[Draft, Sends("invoices", "invoice.void")]] | None:
        return None

    @app.handler(["orders", "café orders/2"], group="mailer", batch=50)
    async def mail(events: list[Event]) -> None: ...

    @app.handler("trees", group="mailer", name="plant")
    async def plant(tree: Tree) -> None: ...

    @app.projection("daily_sales", topics=["orders"], types=["order.placed"])
    async def daily_sales(batch: Batch, tx: Transaction) -> None:
        """Sales by day."""

    @app.projection("everything")
    async def everything(batch: Batch, tx: Transaction) -> None: ...

    return app


BROKERS = ["nats://u:geheim@one:4222,two", "kafka://u:geheim@k:9092", "rediss://:geheim@r:6379/2", "memory://here"]


@pytest.mark.parametrize(
    ("connectors", "packing"),
    [([], "event"), (["kafka://k:9092"], "event"), (BROKERS, "event"), (BROKERS, "batch")],
    ids=["none", "one", "several", "frames"],
)
def test_the_official_parser_finds_nothing_wrong(judge: Judge, connectors: list[str], packing: str) -> None:
    found = judge(asyncapi(shop(*connectors, packing=packing), version="2.1.0", description="Bills orders."))
    assert not found["wrong"]
    assert found["operations"]


def test_an_empty_app_has_a_valid_document(judge: Judge) -> None:
    assert not judge(asyncapi(App("idle", store="memory:")))["wrong"]


def test_the_parser_would_find_something(judge: Judge) -> None:
    document = asyncapi(shop())
    document["operations"]["billing.bill"]["messages"][0]["$ref"] = "#/nowhere"
    assert "invalid-ref" in {each["code"] for each in judge(document)["wrong"]}
    document = asyncapi(shop())
    document["operations"]["billing.bill"]["action"] = "devour"
    assert judge(document)["wrong"]


def test_every_handler_and_projection_is_an_operation(judge: Judge) -> None:
    """As somebody else's program reads it."""
    found = {each["name"]: each for each in judge(asyncapi(shop("kafka://k:9092")))["operations"]}
    assert {name: each["action"] for name, each in found.items()} == {
        "billing.bill": "receive",
        "billing.bill.sends.invoice.written": "send",
        "billing.bill.gives-up": "send",
        "billing.cancel": "receive",
        "billing.cancel.sends.invoice.void": "send",
        "billing.cancel.gives-up": "send",
        "mailer.mail": "receive",
        "mailer.mail-2": "receive",
        "mailer.mail.gives-up": "send",
        "mailer.plant": "receive",
        "mailer.plant.gives-up": "send",
        "projection.daily_sales": "receive",
        "projection.everything": "receive",
        "projection.everything-2": "receive",
        "projection.everything-3": "receive",
    }
    assert found["billing.bill"]["channels"] == [["orders", "sk-orders"]]
    assert found["billing.bill.gives-up"]["channels"] == [["orders.dlq", log_of("orders.dlq")]]
    assert found["billing.cancel.gives-up"]["channels"] == [["billing.dlq", log_of("billing.dlq")]]
    (message,) = found["billing.bill"]["messages"]
    assert message["id"] == "order.placed"
    assert message["required"] == ["order_id", "lines", "paid"]
    (letter,) = found["billing.bill.gives-up"]["messages"]
    assert {"attempts", "error", "traceback", "event"} <= set(letter["fields"])
    (invoice,) = found["billing.bill.sends.invoice.written"]["messages"]
    assert invoice["required"] == ["order_id", "cents"]
    (unknown,) = found["billing.cancel.sends.invoice.void"]["messages"]
    assert not unknown["fields"]
    assert [each["id"] for each in found["projection.daily_sales"]["messages"]] == ["order.placed"]
    assert {each["id"] for each in found["mailer.mail"]["messages"]} == {"order.placed", "order.cancelled", "other"}


def test_the_address_of_a_channel_is_the_brokers_own() -> None:
    document = asyncapi(shop(*BROKERS))
    addresses = {name: each["address"] for name, each in document["channels"].items() if name.startswith("orders.")}
    assert addresses["orders.nats"] == "sk.orders.*"
    assert addresses["orders.kafka"] == "sk-orders"
    assert addresses["orders.rediss"] == "sk:{orders}"
    assert addresses["orders.memory"] is None
    assert document["channels"]["orders.nats"]["servers"] == [
        {"$ref": "#/servers/nats"},
        {"$ref": "#/servers/nats-2"},
    ]


def test_no_password_stands_in_it() -> None:
    document = asyncapi(shop(*BROKERS))
    assert {name: each["host"] for name, each in document["servers"].items()} == {
        "nats": "one:4222",
        "nats-2": "two:4222",
        "kafka": "k:9092",
        "rediss": "r:6379",
        "memory": "here",
    }
    for text in (as_json(document), as_yaml(document), to_html(document)):
        assert "geheim" not in text


@pytest.mark.parametrize(("url", "prefix"), [("nats://n:4222", "ce-"), ("kafka://k:9092", KAFKA_PREFIX)])
async def test_the_headers_are_those_that_are_sent(url: str, prefix: str) -> None:
    """Every header of a real event is described, and every one that is required is there."""
    document = asyncapi(shop(url))
    (headers,) = (each for name, each in document["components"]["schemas"].items() if name.startswith("CloudEvents"))
    app = shop()
    async with app:
        stored = await app.node.append(Draft("orders", "other", "o-1", {"n": 1}, {"by": "me"}))
    sent = set(to_headers(stored.event, b"\0" * 32, prefix=prefix))
    assert sent <= set(headers["properties"])
    assert set(headers["required"]) <= sent
    assert len(headers["properties"]) == len(ATTRIBUTES)


def test_two_models_of_one_name_are_two_schemas(judge: Judge) -> None:
    app = App("two", store="memory:")

    def declare(topic: str, model: Any) -> None:
        async def take(thing: Any) -> None: ...

        take.__annotations__["thing"] = model
        app.handler(topic, name=topic)(take)

    here = msgspec.defstruct("Thing", [("a", int)])
    declare("left", here)
    declare("right", msgspec.defstruct("Thing", [("b", str)]))
    declare("also-left", here)
    document = asyncapi(app)
    payloads = {
        name: document["channels"][name]["messages"]["other"]["payload"] for name in ("left", "right", "also-left")
    }
    assert payloads["left"] == payloads["also-left"] == {"$ref": "#/components/schemas/Thing"}
    assert payloads["right"] == {"$ref": "#/components/schemas/Thing-2"}
    assert not judge(document)["wrong"]


def test_what_two_handlers_take_differently_must_suit_both(judge: Judge) -> None:
    app = App("two", store="memory:")

    @app.handler("orders", "placed", group="a")
    async def first(thing: Invoice) -> None: ...

    @app.handler("orders", "placed", group="b")
    async def second(thing: Cancelled) -> None: ...

    document = asyncapi(app)
    assert len(document["channels"]["orders"]["messages"]["placed"]["payload"]["allOf"]) == 2
    assert not judge(document)["wrong"]


class Odd(BaseModel):
    what: Callable[[], None]


def test_a_model_without_a_schema_is_named() -> None:
    app = App("odd", store="memory:")

    @app.handler("orders")
    async def take(thing: Odd) -> None: ...

    with pytest.raises(ConfigError, match="has no JSON schema"):
        asyncapi(app)


def test_what_is_said_to_be_sent_must_be_possible() -> None:
    with pytest.raises(Invalid):
        Sends("", "invoice.written")


def test_yaml_says_the_same_as_json() -> None:
    document = asyncapi(shop(*BROKERS))
    assert yaml.safe_load(as_yaml(document)) == json.loads(as_json(document)) == document


class Links(HTMLParser):
    """What a page links to, what it has, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.fetched: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "href" and value is not None:
                (self.targets if value.startswith("#") else self.fetched).add(value.lstrip("#"))
            elif name == "id" and value is not None:
                self.ids.add(value)
            elif name == "src":
                self.fetched.add(value or "")


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    page = to_html(asyncapi(shop(*BROKERS), description="<img src=x onerror=alert(1)>"))
    found = Links(page)
    assert not found.fetched
    assert not found.tags & {"script", "img", "iframe", "link", "b"}
    assert found.targets <= found.ids
    assert "How many &lt;b&gt;of them&lt;/b&gt;" in page
    assert "Write the invoice." in page
