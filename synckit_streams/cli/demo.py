"""`synckit demo`: the main job on real records, over a real server, in a few seconds."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from synckit_streams.cli import picture
from synckit_streams.cli.offices import EAST, OFFICES
from synckit_streams.cli.shelf import KINDS, ON_DISK, shelf
from synckit_streams.cli.story import Ending, Story
from synckit_streams.cli.terminal import JsonFlag, carry_out, plain_markup, results, show_json
from synckit_streams.errors import ConfigError
from synckit_streams.runtime.registry import connector_for
from synckit_streams.testing.brokers import NatsServer, RedisServer, Server
from synckit_streams.testing.kafka_server import NoidaServer, local_kafka


def demo(
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Leave the offices' stores here.", show_default=False)
    ] = None,
    connector: Annotated[
        str,
        typer.Option(
            "--connector",
            metavar="NAME|URL",
            help="nats, redis, kafka or memory: of the demo's own. Or the URL of a broker that is there.",
        ),
    ] = "nats",
    store: Annotated[
        str, typer.Option("--store", metavar="NAME", help=f"What the offices keep their events in: {', '.join(KINDS)}.")
    ] = "sqlite",
    json: JsonFlag = False,
) -> None:
    """Three offices edit one register of airports while offline, meet over a real broker, and agree.

    3,376 real airports are split over three nodes with a store each. They are never all online together; two of
    them edit the same airports while offline; the server is killed and comes back. At the end you see who had what, the
    conflicts, who won and why, the read model, and the proof that all stores hold the same. Only then the status is 0.

    [bold]Examples[/bold]

      $ synckit demo
      $ synckit demo --keep offices && synckit log --store sqlite:///offices/west.db
      $ synckit demo --connector redis
      $ synckit demo --store postgres
      $ synckit demo --connector memory --json
    """
    carry_out(lambda: _run(keep, connector, store, json=json), json=json)


async def _run(keep: Path | None, connector: str, store: str, *, json: bool) -> int:
    console = Console(quiet=True) if json else results()
    async with AsyncExitStack() as stack:
        directory = _directory(stack, keep, store)
        stores = await stack.enter_async_context(shelf(store, directory))
        broker = await stack.enter_async_context(meeting_place(connector))
        story = Story(stores, broker.url, broker.topic, broker.server)
        end = await tell(console, story, broker.name)
    if keep is not None and not json:
        url = plain_markup(str(stores.place(EAST)))
        console.print(
            f"\n[dim]Kept in {plain_markup(str(keep))}. Look into it:[/dim]  synckit log --store '{url}' --limit 5",
            soft_wrap=True,
        )
    if json:
        show_json(as_object(end))
    return 0 if end.converged else 1


async def tell(console: Console, story: Story, broker: str) -> Ending:
    """Draw the scenes as they come, and then the rest."""
    started = time.perf_counter()
    width = picture.width_of(console)
    console.print(
        picture.opening(len(story.register), broker, story.shelf.each_in),
        picture.scenes_head(),
        sep="\n\n",
        width=width,
    )
    before: dict[str, int] = {}
    at_work = console.status("[dim]the offices are at work[/dim]") if console.is_interactive else nullcontext()
    with at_work:
        number = 0
        async for scene in story.scenes():
            number += 1
            console.print(picture.scene_line(number, scene, before), width=width)
            before = scene.events
        end = await story.ending()
    seconds = time.perf_counter() - started
    console.print()
    console.print(picture.ending(end, story.register, story.before, seconds, width), width=width)
    return end


def as_object(end: Ending) -> dict[str, Any]:
    """How it ended, for JSON."""
    return {
        "nodes": len(OFFICES),
        "events": end.audit.written,
        "conflicts": len(end.conflicts),
        "converged": end.converged,
        "lost": end.audit.lost,
        "duplicates": end.audit.duplicates,
        "digests": {office: end.audit.holdings[office].digest for office in OFFICES},
    }


def _directory(stack: AsyncExitStack, keep: Path | None, store: str) -> Path:
    """Where the stores are made.

    Raises:
        ConfigError: an earlier demo's stores are there, the directory cannot be made, or such a store cannot be kept.
    """
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="synckit-demo-")))
    if store not in ON_DISK:
        raise ConfigError(f"nothing is left of --store {store}", hint=f"--keep goes with {' and '.join(ON_DISK)}")
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {keep}: {error.strerror}", hint="--keep names a directory") from error
    if there := [path for path in ON_DISK[store](keep).paths.values() if path.exists()]:
        raise ConfigError(f"{there[0]} is there already", hint="--keep names an empty or a new directory")
    return keep


class Broker(NamedTuple):
    """What the offices meet over."""

    url: str
    topic: str
    server: Server | None
    name: str


SERVERS: dict[str, tuple[Callable[[], Server], str]] = {
    "nats": (NatsServer, "a real NATS JetStream server"),
    "redis": (RedisServer, "a real Redis server"),
    "kafka": (local_kafka, "a real Apache Kafka broker"),
}


@asynccontextmanager
async def meeting_place(connector: str) -> AsyncIterator[Broker]:
    """A server of our own, or somebody's broker, in which the demo keeps to a topic of its own.

    Raises:
        MissingDependency: there is no such server; the hint is the command that brings one.
    """
    if connector in SERVERS:
        kind, name = SERVERS[connector]
        server = kind()
        if isinstance(server, NoidaServer):
            name = "noida-db, which speaks Kafka (Apache Kafka needs Java and its jars)"
        await asyncio.to_thread(server.start)
        try:
            yield Broker(server.url, "airports", server, name)
        finally:
            await asyncio.to_thread(server.close)
        return
    run = secrets.token_hex(4)
    scheme = connector.partition("://")[0]
    if connector in ("memory", "memory://"):
        connector = f"memory://demo-{run}"
    # A broker in memory is there as long as somebody is on it, and between two scenes no office is.
    anchor = connector_for(connector)
    try:
        # On a broker that others use as well, the topic must be the demo's alone.
        yield Broker(connector, "airports" if scheme == "memory" else f"airports-{run}", None, f"{scheme}://")
    finally:
        await anchor.close()
