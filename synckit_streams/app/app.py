"""An application: handlers and projections that follow the log of one node.

A handler is called with what is in the store, never with what a broker just delivered: when it runs, its event is
committed, deduplicated and acknowledged. What it does in the store's database, the events that it returns and its place
in the log commit together. So an effect is there once, however often anything crashes; an effect elsewhere happens at
least once, and `HandlerContext.idempotency_key` lets whoever takes it tell a repetition.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    contextmanager,
)
from typing import Any, TypeVar

from synckit_streams.app.declared import (
    DeclaredHandler,
    DeclaredProjection,
    Middleware,
    Options,
    check_coroutine,
    checked_topics,
)
from synckit_streams.app.ending import Ending, told_to_end
from synckit_streams.app.upcasting import Upcasters
from synckit_streams.errors import ConfigError, HandlerError, StoreError
from synckit_streams.ports.connector import Connector
from synckit_streams.ports.operation import Check
from synckit_streams.ports.store import EventStore, Transaction
from synckit_streams.runtime.group import Group
from synckit_streams.runtime.keeping import LEASE_S
from synckit_streams.runtime.node import SyncNode
from synckit_streams.runtime.registry import store_for
from synckit_streams.runtime.settings import check_known, check_list, check_seconds
from synckit_streams.runtime.trial import Terms

logger = logging.getLogger("synckit_streams")

_F = TypeVar("_F", bound=Callable[..., Any])
Hook = Callable[[], Awaitable[None]]
DRAIN_S = 30.0
"""How long a worker that is to end may take to finish what it has begun."""


class App:
    """See the module's text. Used with decorators; run by `synckit run module:app`, `app.run()`, or as a context.

    Args:
        name: Of the application: its node id, and the name of its ingest group where workers share a store.
        store: URL, or a store that was made already.
        connectors: Brokers to meet others over; none makes a local application.
        topics: More topics than the handlers and projections name, to be received and sent.
        middleware: Around every call of a handler, the outermost first.
        lifespan: A context around everything: what it opens is there before the first event.
        worker_lease_s: For how long a worker that says nothing keeps its lanes, where several share the store.
        node: Further arguments of `SyncNode`, as in `packing`, `resolver`, `observer`.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(
        self,
        name: str,
        *,
        store: str | EventStore,
        connectors: Sequence[str | Connector] = (),
        topics: Sequence[str] = (),
        middleware: Sequence[Middleware] = (),
        lifespan: Callable[[App], AbstractAsyncContextManager[Any]] | None = None,
        worker_lease_s: float = LEASE_S,
        **node: Any,
    ) -> None:
        check_seconds("worker_lease_s", worker_lease_s)
        check_list("connectors", connectors, '["nats://127.0.0.1:4222"]')
        check_list("topics", topics, '["orders"]')
        check_list("middleware", middleware, "[timed]")
        check_known("App", node, _NODE)
        self.name = name
        self._lease_s = worker_lease_s
        self.handlers: list[DeclaredHandler] = []
        self.projections: list[DeclaredProjection] = []
        self._store = store
        self._connectors = tuple(connectors)
        self._topics = tuple(topics)
        self._middleware = list(middleware)
        self._lifespan = lifespan
        self._options = node
        self._upcasters = Upcasters()
        self._provider: Any = None
        self._live = True
        self._startup: list[Hook] = []
        self._shutdown: list[Hook] = []
        self._node: SyncNode | None = None
        self._groups: list[Group] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: Ending | None = None
        self._stack = AsyncExitStack()

    # --- declaring ---------------------------------------------------------------------------------------------------

    def handler(
        self,
        topics: str | Sequence[str],
        *types: str,
        group: str = "",
        name: str = "",
        batch: int | None = None,
        **how: Any,
    ) -> Callable[[_F], _F]:
        """Call this function with the events of a topic, each once it is in the store, in order per aggregate.

        Args:
            topics: One topic or several.
            types: Only events of these types; none is every type that no other handler of the group names.
            group: Its places in the log are kept under this name; the app's own by default. Handlers of one group share
                the order: an aggregate's events reach them one after another.
            name: Of the handler; the function's by default.
            batch: Give it a list of at most so many events. None gives one event at a time.
            how: `concurrency` (strands of the group that work side by side, by default 1), `retry` (`Retry()`),
                `breaker` (`Breaker()`), `timeout_s` (30; None is for ever), `dead_letter` (topic, by default
                `<group>.dlq`), `start` (where a group begins that is new to the store: "earliest" with all that is in
                its log, "latest" with what comes).

        Raises:
            ConfigError: the function cannot be called like that, or a setting is wrong.
        """
        if callable(topics):
            raise ConfigError("@app.handler has no topic", hint='for example @app.handler("orders")')
        check_known("@app.handler", how, _HOW)

        def declare(function: _F) -> _F:
            options = Options(group=group or self.name, name=name, batch=batch, **how)
            handler = DeclaredHandler(
                function,
                checked_topics(topics, "a handler"),
                types,
                options,
                upcasters=self._upcasters,
                middleware=self._middleware,
                provider=self._provider,
            )
            self._check_unlike_others(handler)
            self.handlers.append(handler)
            return function

        return declare

    def _check_unlike_others(self, handler: DeclaredHandler) -> None:
        for other in self.handlers:
            if other.options.group != handler.options.group:
                continue
            if other.name == handler.name:
                raise ConfigError(
                    f"the group {handler.options.group!r} has two handlers {handler.name!r}", hint='give one name="…"'
                )
            if other.options.start != handler.options.start:
                raise ConfigError(
                    f"{handler.name!r} and {other.name!r} are to start at two places, and their group has one",
                    hint="give both the same start, or each a group of its own",
                )
            for topic in set(other.topics) & set(handler.topics):
                both = set(other.types) & set(handler.types) or (not other.types and not handler.types)
                if both:
                    named = ", ".join(sorted(both)) if isinstance(both, set) else "every other type"
                    raise ConfigError(
                        f"{handler.name!r} and {other.name!r} both take {named} of {topic!r}",
                        hint="let them be in two groups: each group gets every event",
                    )

    def projection(
        self,
        name: str,
        *,
        topics: Sequence[str] = (),
        types: Sequence[str] = (),
        batch: int = 1_000,
        resolved: bool = False,
        streamed: bool = False,
        reset: Callable[[Transaction], Awaitable[None]] | None = None,
        **how: Any,
    ) -> Callable[[Callable[..., Awaitable[None]]], DeclaredProjection]:
        """Keep a read model: this function gets a page of the log and the transaction that moves its place.

        Args:
            name: Its own; its place is kept under it.
            topics: Which to follow; empty for every topic.
            types: Which types; empty for all.
            batch: Most events in one call: 10,000, or 1,000,000 if it is streamed.
            streamed: It gets an async iterator of the pages of a whole transaction in place of one page:
                `async for page in pages: …`. For what is added up before it is written.
            resolved: Also give what each aggregate resolved to before and resolves to now (`Batch.changes`).
            reset: Makes the read model empty, its tables included; called once at first, and by a rebuild. It may also
                be declared with `@daily_sales.on_reset`.
            how: `tables` (those that it writes: then it can be rebuilt beside the live ones), `dead_letter` (topic for
                events that it cannot take; without one it stays before them), `retry` (`Retry()`), `timeout_s` (for one
                call; by default for ever).

        Raises:
            ConfigError: it is no coroutine function of two parameters, the name is taken, or a setting is wrong.
        """

        if callable(name):
            raise ConfigError("@app.projection has no name", hint='for example @app.projection("daily_sales")')
        check_known("@app.projection", how, Terms._fields)

        def declare(function: Callable[..., Awaitable[None]]) -> DeclaredProjection:
            if any(each.name == name for each in self.projections):
                raise ConfigError(f"there are two projections {name!r}", hint="each keeps its place under its name")
            made = DeclaredProjection(
                function,
                name,
                topics=topics,
                types=types,
                batch=batch,
                resolved=resolved,
                streamed=streamed,
                reset=reset,
                how=how,
            )
            self.projections.append(made)
            return made

        return declare

    def upcast(self, type: str, *, from_version: int) -> Callable[[_F], _F]:
        """Make data of an earlier version of a type into that of the next one; a model says which version it is by a
        class attribute `schema_version`.

        Raises:
            ConfigError: there is such a step already.
        """

        def declare(function: _F) -> _F:
            self._upcasters.add(type, from_version, function)
            return function

        return declare

    def on_startup(self, hook: Hook) -> Hook:
        """Run this coroutine function when the store is open, before the first event.

        Raises:
            ConfigError: it is no coroutine function.
        """
        check_coroutine("what is to run first", hook)
        self._startup.append(hook)
        return hook

    def on_shutdown(self, hook: Hook) -> Hook:
        """Run this coroutine function when the last event is done, before the store is closed.

        Raises:
            ConfigError: it is no coroutine function.
        """
        check_coroutine("what is to run last", hook)
        self._shutdown.append(hook)
        return hook

    def surrounded(
        self, *, store: str | EventStore, connectors: Sequence[str | Connector], live: bool = True, **node: Any
    ) -> AbstractContextManager[None]:
        """Within the block the same handlers and projections run in other surroundings: in a test, say.

        Args:
            store: See `App`.
            connectors: See `App`.
            live: False leaves it to the caller when to meet others (`app.node.sync`).
            node: Further arguments of `SyncNode`, over those that the app was made with.

        Raises:
            ConfigError: the app runs.
        """
        if self._node is not None:
            raise ConfigError(f"the app {self.name!r} runs", hint="change its surroundings before it is started")
        check_known("App.surrounded", node, _NODE)
        return self._surrounded(store, tuple(connectors), self._options | node, live)

    @contextmanager
    def _surrounded(self, *surroundings: Any) -> Iterator[None]:
        before = self._store, self._connectors, self._options, self._live
        self._store, self._connectors, self._options, self._live = surroundings
        try:
            yield
        finally:
            self._store, self._connectors, self._options, self._live = before

    # --- running -----------------------------------------------------------------------------------------------------

    @property
    def node(self) -> SyncNode:
        """The node, while the app runs.

        Raises:
            ConfigError: it does not.
        """
        if self._node is None:
            raise ConfigError(f"the app {self.name!r} does not run", hint="start it, or use `async with app:`")
        return self._node

    @property
    def groups(self) -> Sequence[Group]:
        """The handler groups, while the app runs."""
        return self._groups

    @property
    def topics(self) -> tuple[str, ...]:
        """Every topic that is received."""
        handled = (topic for each in self.handlers for topic in each.topics)
        projected = (topic for each in self.projections for topic in each.topics)
        return tuple(dict.fromkeys((*handled, *projected, *self._topics)))

    @property
    def shared(self) -> bool:
        """Whether several processes may run it: its store is one that they can share."""
        if not isinstance(self._store, str):
            return self._store.features.shared
        if self._store.lower().startswith("memory:"):
            return False
        # Made for reading only, so that whoever asks takes nothing from whoever runs it.
        return store_for(self._store, read_only=True).features.shared

    async def start(self) -> None:
        """Open the store, and begin to work. Whoever fails here has nothing to stop.

        Raises:
            ConfigError: a setting is wrong, or two parts do not go together.
            StoreError: the store cannot be opened.
        """
        if self._node is not None:
            raise ConfigError(f"the app {self.name!r} runs already")
        async with AsyncExitStack() as stack:
            node = self._make_node()
            await stack.enter_async_context(node)
            self._node, self._ending = node, None
            stack.callback(self._forget)
            stack.push_async_callback(self._in_time, "sending what is unsent", node.stop_auto_sync)
            if self._lifespan is not None:
                lifespan = self._lifespan(self)
                await lifespan.__aenter__()
                stack.push_async_exit(lambda *why: self._in_time("the lifespan", lambda: lifespan.__aexit__(*why)))
            # What handlers returned in an earlier life, of topics that nobody here follows, may not be sent yet.
            await node.send_also(await node.store.topics())
            for hook in self._startup:
                await hook()
            for hook in self._shutdown:
                stack.push_async_callback(self._in_time, "a hook", hook)
            self._groups = self._make_groups(node)
            self._tasks = [asyncio.create_task(each.run(), name=f"synckit-group-{each.name}") for each in self._groups]
            if self.projections:
                self._tasks.append(asyncio.create_task(node.follow(lease_s=self._lease_s), name="synckit-projections"))
            for task in self._tasks:
                task.add_done_callback(_tell)
            if self._connectors and self._live:
                await node.start_auto_sync()
            self._stack = stack.pop_all()

    def _make_node(self) -> SyncNode:
        options = dict(self._options)
        if self.shared and self._connectors:
            # Every process would read everything: the broker's own group divides it.
            options.setdefault("group", self.name)
        return SyncNode(
            self.name,
            store=self._store,
            connectors=self._connectors,
            topics=self.topics,
            projections=self.projections,
            **options,
        )

    def _make_groups(self, node: SyncNode) -> list[Group]:
        by_group: dict[str, list[DeclaredHandler]] = {}
        for handler in self.handlers:
            by_group.setdefault(handler.options.group, []).append(handler)
        return [
            node.group(
                name,
                handlers,
                concurrency=max(each.options.concurrency for each in handlers),
                lease_s=self._lease_s,
                latest=handlers[0].options.start == "latest",
            )
            for name, handlers in by_group.items()
        ]

    def _forget(self) -> None:
        self._node = None
        self._groups = []

    async def _in_time(self, what: str, work: Callable[[], Awaitable[Any]]) -> None:
        """At the end; when the start fails there is no hurry."""
        if self._ending is None:
            await work()
        else:
            await self._ending.in_time(what, work())

    async def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Finish what has begun, send what is unsent, and close. May be called twice.

        Args:
            drain_s: After so many seconds what is still running is cut off; it is done again at the next start. Hooks,
                and sending what is unsent, have a few seconds more in all.
        """
        if self._node is None:
            return
        for group in self._groups:
            await group.stop()
        following = [task for task in self._tasks if task.get_name() == "synckit-projections"]
        for task in following:
            task.cancel()
        self._ending = Ending(self.name, drain_s)
        await self._ending.finish(self._tasks, self._groups)
        self._tasks = []
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def failed(self) -> None:
        """Wait for ever, or raise why the app cannot go on."""
        if not self._tasks:
            await asyncio.Event().wait()
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise HandlerError(f"{self.name}: {', '.join(task.get_name() for task in done)} ended by itself")

    async def checks(self) -> Sequence[Check]:
        """How its parts are."""
        found: list[Check] = []
        try:
            await self.node.store.end()
            found.append(Check("store", ok=True))
        except StoreError as error:
            found.append(Check("store", ok=False, detail=str(error)))
        for group in self._groups:
            waiting = f"{group.parked} aggregates wait for another attempt" if group.parked else ""
            open_circuits = ", ".join(group.open_circuits)
            detail = f"what {open_circuits} depends on is down" if open_circuits else waiting
            found.append(Check(f"group {group.name}", ok=not open_circuits, needed=False, detail=detail))
        failing = self.node.projections_failing()
        for name in [each.name for each in self.projections]:
            why = failing.get(name)
            detail = f"stands before position {why.position}: {why.reason}" if why is not None else ""
            found.append(Check(f"projection {name}", ok=why is None, needed=False, detail=detail))
        found += [
            Check(task.get_name(), ok=False, detail=str(task.exception()))
            for task in self._tasks
            if task.done() and not task.cancelled() and task.exception() is not None
        ]
        return found

    async def __aenter__(self) -> App:
        await self.start()
        return self

    async def __aexit__(self, *why: object) -> None:
        await self.stop()

    def run(self) -> None:
        """Run until Ctrl-C or SIGTERM, in this process; `synckit run` also gives workers, metrics and health."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with told_to_end() as stopped, self:
            waits = [asyncio.create_task(each) for each in (stopped.wait(), self.failed())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
                ended = await asyncio.gather(*waits, return_exceptions=True)
            for result in ended:
                if isinstance(result, Exception):
                    raise result


def _tell(task: asyncio.Task[None]) -> None:
    """What ends by an error ends for good; whoever does not wait for `failed` has it in the log."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s has ended: %s", task.get_name(), error, exc_info=error)


_HOW = {"concurrency", "retry", "breaker", "timeout_s", "dead_letter", "start"}
_NODE = set(inspect.signature(SyncNode).parameters) - {"node_id", "store", "connectors", "topics", "projections"}
"""Of the arguments of a node, those that an app passes on."""
