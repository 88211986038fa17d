"""A handler and a projection as they are declared: checked at once, and ready to be run."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from synckit_streams.app.calling import Signature, drafts_of
from synckit_streams.app.upcasting import Upcasters
from synckit_streams.errors import ConfigError, HandlerError, SyncKitError
from synckit_streams.model.codec import NAME_BYTES_MAX, check_text, check_topic
from synckit_streams.model.event import Draft, Stored
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime import projector
from synckit_streams.runtime.handling import HandlerContext
from synckit_streams.runtime.lanes import LANES
from synckit_streams.runtime.policy import Breaker, Retry
from synckit_streams.runtime.settings import check_count, check_seconds
from synckit_streams.runtime.trial import Terms

Next = Callable[[HandlerContext], Awaitable[Sequence[Draft]]]
Middleware = Callable[[Next, HandlerContext], Awaitable[Sequence[Draft]]]
"""Wraps every call of a handler: `async def timed(call_next, context): return await call_next(context)`."""

BATCH_MAX = 10_000
"""Most events in one call of a handler."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a handler is run; see `App.handler`."""

    group: str
    name: str = ""
    batch: int | None = None
    concurrency: int = 1
    retry: Retry = Retry()
    breaker: Breaker = Breaker()
    timeout_s: float | None = 30.0
    dead_letter: str = ""
    start: str = "earliest"


STARTS = ("earliest", "latest")


class DeclaredHandler:
    """See `synckit_streams.runtime.handling.Handler`.

    Args:
        function: The user's.
        topics: Which it follows.
        types: Which types; empty for all.
        options: How.
        upcasters: Of the app.
        middleware: Of the app, the outermost first.
        provider: Of dependencies.

    Raises:
        ConfigError: something about it is wrong.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        topics: Sequence[str],
        types: Sequence[str],
        options: Options,
        *,
        upcasters: Upcasters,
        middleware: Sequence[Middleware],
        provider: Any,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"{function!r:.80} is no function", hint="put @app.handler(…) above a function")
        self.name = options.name or getattr(function, "__name__", type(function).__name__)
        whose = f"the handler {self.name!r}"
        self.topics = checked_topics(topics, whose)
        self.types = tuple(types)
        self.options = options
        self.batch = options.batch or 1
        self.timeout_s = options.timeout_s
        self.retry = options.retry
        self.breaker = options.breaker
        self.dead_letter = options.dead_letter or f"{options.group}.dlq"
        self._check(whose)
        self.signature = Signature(function, batch=options.batch is not None, provider=provider)
        self._upcasters = upcasters
        self._middleware = middleware

    def _check(self, whose: str) -> None:
        options = self.options
        try:
            check_text("a group", options.group, bytes_max=NAME_BYTES_MAX)
            check_text("a handler's name", self.name, bytes_max=NAME_BYTES_MAX)
            check_topic(self.dead_letter)
            for type in self.types:
                check_text("an event type", type, bytes_max=NAME_BYTES_MAX)
        except SyncKitError as error:
            raise ConfigError(f"{whose}: {error.message}") from error
        if options.batch is not None:
            check_count(f"{whose}: batch", options.batch, least=1)
        if self.batch > BATCH_MAX:
            raise ConfigError(f"{whose}: batch={self.batch}", hint=f"at most {BATCH_MAX} events go into one call")
        check_count(f"{whose}: concurrency", options.concurrency, least=1)
        if options.concurrency > LANES:
            raise ConfigError(
                f"{whose}: concurrency={options.concurrency}, and there are {LANES} lanes", hint="take more processes"
            )
        if options.timeout_s is not None:
            check_seconds(f"{whose}: timeout_s", options.timeout_s)
        if options.start not in STARTS:
            raise ConfigError(f"{whose}: start={options.start!r:.80}", hint=f"choose one of {', '.join(STARTS)}")
        for option, kind in (("retry", Retry), ("breaker", Breaker)):
            if not isinstance(getattr(options, option), kind):
                raise ConfigError(
                    f"{whose}: {option}={getattr(options, option)!r:.80}",
                    hint=f"for example {option}={kind.__name__}()",
                )
        options.retry.check(whose)
        options.breaker.check(whose)
        if self.dead_letter in self.topics:
            raise ConfigError(
                f"{whose} follows its own dead letters, and would give them up again and again",
                hint="handle the dead-letter topic in a group of its own, with another dead letter",
            )

    async def handle(self, events: Sequence[Stored], context: HandlerContext) -> Sequence[Draft]:
        """See `Handler`."""
        call: Next = self._run
        for each in reversed(self._middleware):
            call = _wrapped(each, call)
        return await call(context)

    async def _run(self, context: HandlerContext) -> Sequence[Draft]:
        given = self.signature.given(context.stored, self._upcasters.upcast)
        return drafts_of(await self.signature.call(given, context), f"the handler {self.name!r}")


def _wrapped(middleware: Middleware, inner: Next) -> Next:
    async def call(context: HandlerContext) -> Sequence[Draft]:
        drafts = await middleware(inner, context)
        if drafts is None:
            named = getattr(middleware, "__name__", type(middleware).__name__)
            raise HandlerError(f"the middleware {named!r} returned None", hint="return await call_next(context)")
        return drafts

    return call


class DeclaredProjection:
    """See `synckit_streams.ports.projection.Projection`: a read model that is one function.

    Args:
        function: The user's, of a batch (of its pages, if it is streamed) and a transaction.
        name: Of the projection.
        topics: Which it follows; empty for every topic.
        types: Which types; empty for all.
        batch: Most events in one call.
        resolved: Whether it wants `Batch.changes`.
        streamed: Whether it takes the pages of a transaction itself.
        reset: Makes the read model empty, and its tables if they are not there; None does nothing.
        how: What differs from the usual `Terms`.

    Raises:
        ConfigError: something about it is wrong.
    """

    def __init__(
        self,
        function: Callable[[Any, Transaction], Awaitable[None]],
        name: str,
        *,
        topics: Sequence[str],
        types: Sequence[str] | str,
        batch: int,
        resolved: bool,
        streamed: bool,
        reset: Callable[[Transaction], Awaitable[None]] | None,
        how: Mapping[str, Any],
    ) -> None:
        whose = f"the projection {name!r}"
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"{whose} is no coroutine function", hint="async def f(batch, tx): await tx.execute(…)")
        if len(inspect.signature(function).parameters) != 2:
            raise ConfigError(f"{whose} takes a batch and a transaction", hint="async def f(batch, tx): …")
        check_count(f"{whose}: batch", batch, least=1)
        most = projector.STREAM_MAX if streamed else projector.BATCH_MAX
        if batch > most:
            into = "transaction" if streamed else "page"
            raise ConfigError(f"{whose}: batch={batch}", hint=f"at most {most} events go into one {into}")
        self.name = name
        self.topics = checked_topics(topics, whose) if topics else ()
        self.types = (types,) if isinstance(types, str) else tuple(types)
        self.batch = batch
        self.resolved = resolved
        self.streamed = streamed
        terms = Terms(**how)
        terms.check(whose, self.topics)
        self.tables, self.retry, self.dead_letter, self.timeout_s = terms
        self._function = function
        self._reset = reset

    async def apply(self, batch: Any, tx: Transaction) -> None:
        """See `Projection` and `StreamedProjection`."""
        await self._function(batch, tx)

    async def reset(self, tx: Transaction) -> None:
        """See `Projection`."""
        if self._reset is not None:
            await self._reset(tx)

    def on_reset(self, function: Callable[[Transaction], Awaitable[None]]) -> Callable[[Transaction], Awaitable[None]]:
        """A decorator for what makes the read model empty: its tables included, if they are not there yet.

        Raises:
            ConfigError: it is no coroutine function.
        """
        check_coroutine(f"what empties the projection {self.name!r}", function)
        self._reset = function
        return function


def check_coroutine(what: str, function: Any) -> None:
    """That it can be awaited.

    Raises:
        ConfigError: it cannot.
    """
    if not inspect.iscoroutinefunction(function):
        named = getattr(function, "__name__", repr(function)[:80])
        raise ConfigError(f"{what}, {named}, is no coroutine function", hint="write async def")


def checked_topics(topics: Sequence[str] | str, whose: str) -> tuple[str, ...]:
    """One topic or several.

    Raises:
        ConfigError: there is none, or one that cannot be.
    """
    found = (topics,) if isinstance(topics, str) else tuple(topics)
    if not found:
        raise ConfigError(f"{whose} follows no topic", hint='for example @app.handler("orders")')
    try:
        for topic in found:
            check_topic(topic)
    except SyncKitError as error:
        raise ConfigError(f"{whose}: {error.message}") from error
    return found
