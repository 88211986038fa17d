"""Around FastStream's handlers: what the broker delivers again is not done again, and what fails is not lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from faststream import AckPolicy, BaseMiddleware, FastStream
from faststream.exceptions import AckMessage, NackMessage
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.nats import NatsBroker, TestNatsBroker
from faststream.redis import RedisBroker, StreamSub, TestRedisBroker
from pydantic import BaseModel

from synckit_streams import ConfigError, Draft, Event, Retry, SyncNode
from synckit_streams.app.faststream import CurrentEvent, EventCodec, IdempotencyKey, Inbox, Tx
from synckit_streams.model.cloudevent import KAFKA_PREFIX, to_headers
from synckit_streams.model.codec import event_hash
from synckit_streams.runtime.driver import World

DEADLINE_S = 30.0


class Order(BaseModel):
    id: str
    cents: int


@dataclass
class Shop:
    """One service: its node, its broker, and what it did."""

    broker: Any
    around: Callable[[Any], Any]
    publish: Callable[..., Any]
    node: SyncNode
    more: dict[str, Any]
    inbox: Inbox = field(init=False)

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.node, self.broker, retry=Retry(max_attempts=3, base_ms=1), **self.more)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.inbox.lifespan(), self.around(self.broker):
            yield

    async def written(self, topic: str) -> list[Event]:
        return [stored.event async for stored in self.node.log(topic)]

    def subscriber(self, topic: str, **how: Any) -> Any:
        if isinstance(self.broker, RedisBroker):
            return self.broker.subscriber(stream=StreamSub(topic, group="g", consumer="c"), **how)
        if isinstance(self.broker, NatsBroker):
            return self.broker.subscriber(topic, **how)
        return self.broker.subscriber(topic, ack_policy=AckPolicy.NACK_ON_ERROR, group_id="g", **how)


def local() -> SyncNode:
    return SyncNode("billing", store="memory:")


def kafka(node: SyncNode | None = None, **more: Any) -> Shop:
    broker = KafkaBroker(codec=EventCodec())
    return Shop(broker, TestKafkaBroker, broker.publish, node or local(), more)


def nats(node: SyncNode | None = None, **more: Any) -> Shop:
    broker = NatsBroker(codec=EventCodec())
    return Shop(broker, TestNatsBroker, broker.publish, node or local(), more)


def redis(node: SyncNode | None = None, **more: Any) -> Shop:
    broker = RedisBroker(codec=EventCodec())

    def publish(body: Any, topic: str, **how: Any) -> Any:
        return broker.publish(body, stream=topic, **how)

    return Shop(broker, TestRedisBroker, publish, node or local(), more)


MAKERS = [kafka, nats, redis]


@pytest.fixture(params=MAKERS)
def shop(request: pytest.FixtureRequest) -> Shop:
    made: Shop = request.param()
    return made


def named(id: str) -> dict[str, str]:
    """Somebody's CloudEvent."""
    return {"ce-id": id, "ce-source": "/tills/7", "ce-specversion": "1.0", "ce-type": "order.placed"}


async def test_an_effect_its_events_and_the_note_of_it_commit_once(shop: Shop) -> None:
    """With FastStream's own TestBroker, three deliveries of one CloudEvent."""

    @shop.subscriber("orders")
    async def bill(order: Order, tx: Tx) -> Draft:
        await tx.execute("CREATE TABLE IF NOT EXISTS bills (id TEXT, cents INT)")
        await tx.execute("INSERT INTO bills VALUES (?, ?)", (order.id, order.cents))
        return Draft("invoices", "invoice.written", order.id, {"cents": order.cents})

    async with shop.running():
        for _ in range(3):
            await shop.publish({"id": "o-1", "cents": 5}, "orders", headers=named("e-1"))
        await shop.publish({"id": "o-2", "cents": 7}, "orders", headers=named("e-2"))
        async with shop.node.store.transaction() as tx:
            assert sorted(await tx.execute("SELECT * FROM bills")) == [("o-1", 5), ("o-2", 7)]
        assert [each.data["cents"] for each in await shop.written("invoices")] == [5, 7]


async def test_what_fails_is_tried_again_and_then_a_dead_letter(shop: Shop) -> None:
    """What it did in the transaction is undone each time, and the next message is handled."""
    calls: list[str] = []

    @shop.subscriber("orders")
    async def bill(order: Order, tx: Tx) -> Draft:
        calls.append(order.id)
        await tx.execute("CREATE TABLE IF NOT EXISTS bills (id TEXT)")
        await tx.execute("INSERT INTO bills VALUES (?)", (order.id,))
        if order.cents < 0 or (order.id == "late" and calls.count("late") < 3):
            raise RuntimeError("no")
        return Draft("invoices", "invoice.written", order.id)

    async with shop.running():
        for id, cents in (("bad", -1), ("late", 1), ("good", 1)):
            await shop.publish({"id": id, "cents": cents}, "orders", headers=named(id))
        (letter,) = await shop.written("billing.dlq")
        async with shop.node.store.transaction() as tx:
            assert await tx.execute("SELECT id FROM bills") == [("late",), ("good",)]
        await shop.publish({"id": "bad", "cents": -1}, "orders", headers=named("bad"))
    assert calls == ["bad"] * 3 + ["late"] * 3 + ["good"]
    assert (letter.data["attempts"], letter.data["error"]) == (3, "RuntimeError: no")
    assert letter.data["event"]["data"] == {"id": "bad", "cents": -1}
    assert "raise RuntimeError" in letter.data["traceback"]


@pytest.mark.parametrize("body", [{"id": "o-1"}, b"{", b"\xff", [1]])
async def test_what_does_not_fit_is_a_dead_letter_at_once(shop: Shop, body: Any) -> None:
    @shop.subscriber("orders")
    async def bill(order: Order) -> None:
        raise AssertionError("it is never called")

    async with shop.running():
        await shop.publish(body, "orders", headers=named("e-1"))
        (letter,) = await shop.written("billing.dlq")
    assert letter.data["attempts"] == 1


async def test_a_handler_that_never_returns_has_failed() -> None:
    shop = kafka(timeout_s=0.01)

    @shop.subscriber("orders")
    async def bill(order: Order) -> None:
        await asyncio.Event().wait()

    async with shop.running():
        await shop.publish({"id": "o-1", "cents": 1}, "orders", headers=named("e-1"))
        (letter,) = await shop.written("billing.dlq")
    assert (letter.data["attempts"], letter.data["error"]) == (3, "TimeoutError: ")


async def test_what_no_handler_wants_is_a_dead_letter(shop: Shop) -> None:
    subscriber = shop.subscriber("orders")

    @subscriber(filter=lambda message: message.headers.get("kind") == "order")
    async def bill(order: Order) -> None: ...

    async with shop.running():
        await shop.publish({"id": "o-1", "cents": 1}, "orders", headers={"kind": "order"})
        await shop.publish({"id": "o-2", "cents": 1}, "orders", headers={"kind": "else"})
        (letter,) = await shop.written("billing.dlq")
    assert "SubscriberNotFound" in letter.data["error"]


async def test_a_value_error_of_the_handlers_own_is_tried_again(shop: Shop) -> None:
    calls = 0

    @shop.subscriber("orders")
    async def bill(order: Order) -> None:
        nonlocal calls
        calls += 1
        Order.model_validate({"id": 3} if calls < 3 else {"id": "x", "cents": 1})

    async with shop.running():
        await shop.publish({"id": "o-1", "cents": 1}, "orders", headers=named("e-1"))
        assert not await shop.written("billing.dlq")
    assert calls == 3


async def test_an_event_of_ours_comes_in_and_goes_out(shop: Shop) -> None:
    """Whole, with its key, in binary mode and in structured mode; both are the same event."""
    seen: list[tuple[Event, str]] = []

    @shop.subscriber("orders", codec=EventCodec(events=True))
    async def bill(event: Event, same: CurrentEvent, key: IdempotencyKey) -> None:
        assert event == same
        seen.append((event, key))

    async with SyncNode("till", store="memory:", topics=["orders"]) as till:
        event = (await till.append(Draft("orders", "order.placed", "o-1", {"id": "o-1"}, {"by": "me"}))).event
    prefix = KAFKA_PREFIX if isinstance(shop.broker, KafkaBroker) else "ce-"
    async with shop.running():
        await shop.publish(event, "orders")
        assert [each for each, _ in seen] == [event]
        await shop.publish(event.payload, "orders", headers=to_headers(event, event_hash(event), prefix=prefix))
        assert len(seen) == 1


async def test_a_changed_event_is_nobodys(shop: Shop) -> None:
    """One whose hash does not match is a message like any other: it has not the id that it claims."""
    seen: list[str] = []

    @shop.subscriber("orders")
    async def bill(order: dict[str, Any], event: CurrentEvent) -> None:
        seen.append(event.origin)

    async with SyncNode("till", store="memory:", topics=["orders"]) as till:
        event = (await till.append(Draft("orders", "order.placed", "o-1", {"id": "o-1"}))).event
    headers = to_headers(event, event_hash(event))
    async with shop.running():
        await shop.publish({"id": "o-2"}, "orders", headers=headers)
    assert seen == [""]


async def test_what_is_no_draft_is_fast_streams_to_publish(shop: Shop) -> None:
    answers: list[Any] = []

    @shop.subscriber("answers")
    async def take(answer: Any) -> None:
        answers.append(answer)

    @shop.subscriber("orders")
    async def bill(order: Order) -> Any:
        return {"done": order.id} if order.cents else Draft("invoices", "invoice.written", order.id)

    target = {"stream": "answers"} if isinstance(shop.broker, RedisBroker) else {}
    publisher = shop.broker.publisher(**target) if target else shop.broker.publisher("answers")
    publisher(bill)
    async with shop.running():
        for cents in (1, 1, 0, 0):
            await shop.publish({"id": "o-1", "cents": cents}, "orders", headers=named(f"e-{cents}"))
    assert answers == [{"done": "o-1"}]


async def test_a_batch_has_only_what_is_new_and_one_bad_message_of_it_is_found() -> None:
    shop = kafka()
    batches: list[list[str]] = []

    @shop.subscriber("orders", batch=True)
    async def bill(orders: list[Order]) -> list[Draft]:
        batches.append([order.id for order in orders])
        if any(order.cents < 0 for order in orders):
            raise RuntimeError("no")
        return [Draft("invoices", "invoice.written", order.id) for order in orders]

    async with SyncNode("till", store="memory:", topics=["orders"]) as till:
        drafts = [
            Draft("orders", "order.placed", f"o-{n}", {"id": f"o-{n}", "cents": -1 if n == 5 else n}) for n in range(8)
        ]
        events = [each.event for each in await till.append_many(drafts)]
    async with shop.running():
        await shop.broker.publish_batch(*events[:3], topic="orders")
        await shop.broker.publish_batch(*events, *events[6:], topic="orders")
        assert sorted(each.aggregate_id for each in await shop.written("invoices")) == [
            f"o-{n}" for n in range(8) if n != 5
        ]
        (letter,) = await shop.written("billing.dlq")
    assert letter.data["event"]["aggregate_id"] == "o-5"
    assert batches[:2] == [["o-0", "o-1", "o-2"], ["o-3", "o-4", "o-5", "o-6", "o-7"]]


async def test_what_is_acknowledged_by_exception_is_done_and_what_is_refused_is_not(shop: Shop) -> None:
    raised: list[Exception] = [NackMessage(), AckMessage()]
    calls = 0

    @shop.subscriber("orders")
    async def bill(order: Order, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        await tx.execute("CREATE TABLE IF NOT EXISTS bills (id TEXT)")
        await tx.execute("INSERT INTO bills VALUES (?)", (order.id,))
        raise raised[calls - 1]

    async with shop.running():
        for _ in range(3):
            await shop.publish({"id": "o-1", "cents": 1}, "orders", headers=named("e-1"))
        async with shop.node.store.transaction() as tx:
            assert await tx.execute("SELECT id FROM bills") == [("o-1",)]
    assert calls == 2


@pytest.mark.parametrize("make", MAKERS)
async def test_what_a_handler_returns_goes_out_over_the_nodes_own_broker(make: Callable[..., Shop]) -> None:
    """By itself, to whoever follows the topic there."""
    broker = f"memory://{uuid.uuid4().hex}"
    shop = make(SyncNode("billing", store="memory:", connectors=[broker], topics=["invoices"]))

    @shop.subscriber("orders")
    async def bill(order: Order) -> Draft:
        return Draft("invoices", "invoice.written", order.id)

    async with SyncNode("office", store="memory:", connectors=[broker], topics=["invoices"]) as office, shop.running():
        await shop.publish({"id": "o-1", "cents": 1}, "orders", headers=named("e-1"))
        async with asyncio.timeout(DEADLINE_S):
            while not [stored async for stored in office.log()]:
                await office.sync()


async def test_the_failure_of_another_middleware_is_no_dead_letter() -> None:
    """It never reached the handler; what becomes of it, is for the broker."""

    class Refusing(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            raise RuntimeError("not now")

    shop = kafka()
    shop.broker.insert_middleware(Refusing)

    @shop.subscriber("orders")
    async def bill(order: Order) -> None: ...

    async with shop.running():
        with pytest.raises(RuntimeError, match="not now"):
            await shop.publish({"id": "o-1", "cents": 1}, "orders", headers=named("e-1"))
        assert not await shop.written("billing.dlq")


async def test_two_subscribers_each_have_an_inbox(shop: Shop) -> None:
    seen: list[str] = []

    @shop.subscriber("orders")
    async def bill(order: Order) -> None:
        seen.append("bill")

    @shop.subscriber("copies")
    async def mail(order: Order) -> None:
        seen.append("mail")

    async with shop.running():
        for topic in ("orders", "copies") * 2:
            await shop.publish({"id": "o-1", "cents": 1}, topic, headers=named("e-1"))
    assert sorted(seen) == ["bill", "mail"]


@pytest.mark.parametrize("policy", [None, AckPolicy.ACK_FIRST, AckPolicy.MANUAL])
async def test_a_subscriber_that_acknowledges_first_is_refused_at_start_up(policy: AckPolicy | None) -> None:
    shop = kafka()
    how = {} if policy is None else {"ack_policy": policy}

    @shop.broker.subscriber("orders", group_id="g", **how)
    async def bill(order: Order) -> None: ...

    with pytest.raises(ConfigError, match="of Bill the broker is told before"):
        async with shop.running():
            pass
    willing = kafka(at_most_once=True)
    willing.broker.subscriber("orders", group_id="g", **how)(bill)
    async with willing.running():
        pass


async def test_two_handlers_of_one_name_are_refused_at_start_up(shop: Shop) -> None:
    """The one would take the other's messages for done. One function that is subscribed twice is one handler."""

    def declare(topic: str) -> Any:
        @shop.subscriber(topic)
        async def bill(order: Order) -> None: ...

        return bill

    shop.subscriber("more")(declare("orders"))
    async with shop.running():
        pass
    declare("copies")
    with pytest.raises(ConfigError, match="called Bill"):
        async with shop.running():
            pass


async def test_the_notes_are_let_go_when_they_are_old() -> None:
    """They are known for as long as was said; an inbox that is in use does not grow for ever."""
    now_ms = 1_700_000_000_000
    broker = KafkaBroker(codec=EventCodec())
    node = SyncNode("billing", store="memory:", world=World(wall_ms=lambda: now_ms), clock_leap_ms_max=10**12)
    shop = Shop(broker, TestKafkaBroker, broker.publish, node, {"remember_s": 1000.0})
    seen = 0

    @shop.subscriber("orders")
    async def bill(order: Order) -> None:
        nonlocal seen
        seen += 1

    async def again(after_s: int) -> int:
        nonlocal now_ms
        now_ms += after_s * 1000
        await shop.publish({"id": "o-1", "cents": 1}, "orders", headers=named("e-1"))
        return seen

    async with shop.running():
        assert [await again(each) for each in (0, 999, 500, 1000)] == [1, 1, 1, 2]
        ((_, _, generations),) = await node.store.applied("inbox.billing", after=None, limit=10)
        kept = [await node.store.applied(name, after=None, limit=10) for name in generations.decode().split()]
        assert [len(each) for each in kept] == [0, 1]
        assert not await node.store.applied(f"inbox.billing.{1_700_000_000_000 // 1_000_000}", after=None, limit=10)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Inbox(SyncNode("a", store="memory:"), "kafka://k"), "is no broker"),
        (lambda: Inbox(SyncNode("a", store="memory:"), KafkaBroker(), name="n" * 10_000), "the inbox"),
        (lambda: Inbox(SyncNode("a", store="memory:"), KafkaBroker(), dead_letter=" \0"), "the inbox"),
        (lambda: Inbox(SyncNode("a", store="memory:"), KafkaBroker(), remember_s=-1), "remember_s"),
        (lambda: Inbox(SyncNode("a", store="memory:"), KafkaBroker(), timeout_s=-1), "timeout_s"),
        (lambda: Inbox(SyncNode("a", store="memory:"), KafkaBroker(), retry=Retry(0)), "max_attempts"),
    ],
)
async def test_a_wrong_setting_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


async def test_it_runs_as_the_lifespan_of_an_application() -> None:
    from faststream import TestApp as TestFastStream

    shop = kafka()
    app = FastStream(shop.broker, lifespan=shop.inbox.lifespan)

    @shop.subscriber("orders")
    async def bill(order: Order) -> Draft:
        return Draft("invoices", "invoice.written", order.id)

    async with TestKafkaBroker(shop.broker), TestFastStream(app):
        await shop.publish({"id": "o-1", "cents": 1}, "orders", headers=named("e-1"))
        assert len(await shop.written("invoices")) == 1
