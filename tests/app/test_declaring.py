"""What cannot work is refused when it is declared, by name and with a hint, and not at the first event."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from synckit_streams import App, Breaker, ConfigError, Draft, Event, HandlerContext, Retry
from synckit_streams.testing import TestApp


def app_of(**more: Any) -> App:
    return App("billing", store="memory:", **more)


class Called:
    """A callable object."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    async def __call__(self, event: Event) -> None:
        self.seen.append(event)

    async def method(self, event: Event) -> None:
        self.seen.append(event)


async def bound(seen: list[Any], event: Event) -> None:
    seen.append(event)


@pytest.mark.parametrize(
    "made",
    [Called, lambda seen: Called(seen).method, lambda seen: functools.partial(bound, seen)],
    ids=["object", "method", "partial"],
)
async def test_whatever_can_be_called_is_a_handler(made: Callable[[list[Any]], Any]) -> None:
    """Awaited if it has to be, and with the event as its parameter is annotated."""
    app = app_of()
    seen: list[Any] = []
    app.handler("orders", name="note")(made(seen))
    async with TestApp(app) as t:
        await t.publish(Draft("orders", "order.placed", "o-1"))
        await t.drain()
        assert not t.published("billing.dlq")
    assert [type(each) for each in seen] == [Event]


def generator(event: Event) -> Iterator[Draft]:
    yield Draft("invoices", "invoice.written", event.aggregate_id)


async def async_generator(event: Event) -> AsyncIterator[Draft]:
    yield Draft("invoices", "invoice.written", event.aggregate_id)


def by_position(event: Event, /) -> None: ...


def several(events: list[Event]) -> None: ...


def strange(event: asyncio.Lock) -> None: ...


def perhaps(event: Event, ctx: HandlerContext | None = None) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (generator, "'generator' is a generator"),
        (async_generator, "'async_generator' is a generator"),
        (Called, "'Called' is a class"),
        (by_position, "'by_position' takes event by its position only"),
        (several, "say batch="),
        (strange, "'strange' has an event's parameter that cannot be"),
        (perhaps, "'perhaps' says that ctx may be something else"),
        (bound, "'bound' needs one parameter for the event, and has seen, event"),
    ],
)
def test_a_function_that_cannot_be_called_is_no_handler(function: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        app_of().handler("orders")(function)


@pytest.mark.parametrize(
    "option",
    [
        *({"retry": 5}, {"retry": Retry(max_attempts=0)}, {"breaker": None}, {"breaker": Breaker(failures=0)}),
        *({"batch": 0}, {"batch": 10_001}, {"concurrency": 65}, {"timeout_s": 0}, {"dead_letter": "orders"}),
        *({"max_attempts": 3}, {"group": "x" * 300}),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        app_of().handler("orders", **option)(several if "batch" in option else by_name)


def by_name(event: Event) -> None: ...


def test_the_options_of_the_test_above_are_what_is_wrong() -> None:
    app_of().handler("orders", retry=Retry(), breaker=Breaker(), concurrency=64, timeout_s=1)(by_name)
    app_of().handler("orders", batch=10_000)(several)


def forgotten_parentheses(app: Any) -> None:
    app.handler(by_name)


def projection_without_a_name(app: Any) -> None:
    app.projection(bound)


def startup(app: Any) -> None:
    app.on_startup(by_name)


def shutdown(app: Any) -> None:
    app.on_shutdown(by_name)


def reset(app: Any) -> None:
    app.projection("seen")(bound).on_reset(by_name)


@pytest.mark.parametrize("declare", [forgotten_parentheses, projection_without_a_name, startup, shutdown, reset])
def test_a_decorator_that_would_do_nothing_is_refused(declare: Callable[[App], None]) -> None:
    with pytest.raises(ConfigError):
        declare(app_of())


@pytest.mark.parametrize("setting", ["connectors", "topics", "middleware"])
def test_one_is_not_taken_for_several(setting: str) -> None:
    """A text would be taken for its letters."""
    with pytest.raises(ConfigError, match=f"{setting} is a list"):
        app_of(**{setting: "orders"})


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ({"packng": "batch"}, "did you mean packing?"),
        ({"observers": None}, "did you mean observer?"),
        ({"projections": []}, "there are bridge,"),
        ({"xyz": 1}, "there are bridge,"),
    ],
    ids=str,
)
def test_an_option_that_no_node_has_is_refused_where_it_is_written(option: dict[str, Any], hint: str) -> None:
    """And not as a TypeError when the app is started."""
    for make in (app_of, lambda **more: app_of().surrounded(store="memory:", connectors=[], **more)):
        with pytest.raises(ConfigError) as refused:
            make(**option)
        assert refused.value.hint.startswith(hint)


def test_the_options_of_a_node_are_taken() -> None:
    app_of(packing="batch", held_max=5, lease_s=3, resolver=None, observer=None)


def test_one_type_of_a_projection_is_one() -> None:
    assert app_of().projection("seen", types="order.placed")(bound).types == ("order.placed",)


def doubled(data: Any) -> Any:
    return data


async def later(data: Any) -> Any:
    return data


@pytest.mark.parametrize(("version", "step"), [("1", doubled), (0, doubled), (1, later), (2, doubled)])
def test_an_upcaster_that_cannot_lead_on_is_refused(version: Any, step: Any) -> None:
    app = app_of()
    app.upcast("order.placed", from_version=2)(doubled)
    with pytest.raises(ConfigError):
        app.upcast("order.placed", from_version=version)(step)
