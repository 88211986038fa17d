"""Keeps pipelines going: starts what the files declare, and tells, pauses and reloads it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from synckit_streams.connect.assembly import parts_of
from synckit_streams.connect.loading import Declared, Loaded, load
from synckit_streams.connect.pipeline import DRAIN_S, Pipeline
from synckit_streams.connect.spec import Pipeline as Spec
from synckit_streams.errors import ConfigError, SyncKitError
from synckit_streams.ports.operation import Check, Standing, Webhook
from synckit_streams.ports.telemetry import Observer

logger = logging.getLogger("synckit_streams")


class Reloaded(NamedTuple):
    """What a reload did: names of pipelines, or why it did nothing."""

    started: Sequence[str] = ()
    restarted: Sequence[str] = ()
    stopped: Sequence[str] = ()
    refused: Sequence[str] = ()


class _Running(NamedTuple):
    declared: Declared
    pipeline: Pipeline

    @property
    def says(self) -> tuple[Spec, Path]:
        """What decides whether it is still the same."""
        return self.declared.pipeline, self.declared.places.states


class Runner:
    """The pipelines of some files, to be run and to be operated; see `synckit_streams.ports.operation`.

    Args:
        paths: Files, and folders of them.
        once: Each pipeline ends when its source has nothing more.
        state: In which folder the pipelines keep what they remember; None is beside each file.
        environment: What `${NAME}` in a file means; the process's own by default.
        observer: Told of what the pipelines do, and their nodes.
    """

    name = "connect"
    shared = False

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        once: bool = False,
        state: Path | None = None,
        environment: Mapping[str, str] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._paths = list(paths)
        self._once = once
        self._state = state
        self._observer = observer
        self._environment = os.environ if environment is None else environment
        self._running: dict[str, _Running] = {}
        self._turn = asyncio.Lock()
        self.hooks: dict[str, Webhook] = {}
        """The webhooks, by the names of their pipelines; it changes when the files are reloaded."""
        self._dice = random.SystemRandom().random

    def load(self) -> Loaded:
        """What the files declare now, and what is wrong with them."""
        return load(self._paths, self._environment, self._state)

    async def start(self) -> None:
        """Begin with every pipeline.

        Raises:
            ConfigError: something is wrong with the files; nothing was started.
        """
        loaded = self.load()
        if loaded.problems:
            raise ConfigError("\n".join(map(str, loaded.problems)), hint="`synckit connect --check` says it again")
        for name, running in self._made(loaded.declared).items():
            self._running[name] = running
            running.pipeline.start()
        self._hook()

    def _hook(self) -> None:
        self.hooks.clear()
        for name, running in self._running.items():
            if (hook := running.pipeline.hook) is not None:
                self.hooks[name] = hook

    def _made(self, declared: Sequence[Declared]) -> dict[str, _Running]:
        return {each.pipeline.name: _Running(each, self._make(each)) for each in declared}

    def _make(self, declared: Declared) -> Pipeline:
        parts = parts_of(declared.pipeline, declared.places, once=self._once, observer=self._observer)
        name = declared.pipeline.name
        return Pipeline(name, parts, once=self._once, dice=self._dice, observer=self._observer)

    async def reload(self) -> Reloaded:
        """Read the files again; only what they say otherwise is restarted. Where something is wrong with them,
        everything goes on as it is."""
        async with self._turn:
            try:
                loaded = self.load()
                refused = [str(problem) for problem in loaded.problems]
                made = {} if refused else self._made(loaded.declared)
            except SyncKitError as error:
                refused, made = [str(error)], {}
            if refused:
                for problem in refused:
                    logger.error("the files are not taken, and what runs goes on as it is: %s", problem)
                return Reloaded(refused=refused)
            changed = [name for name in made if name in self._running and made[name].says != self._running[name].says]
            gone = [name for name in self._running if name not in made]
            new = [name for name in made if name not in self._running]
            await asyncio.gather(*(self._running[name].pipeline.stop() for name in (*changed, *gone)))
            for name in gone:
                del self._running[name]
            for name in (*changed, *new):
                self._running[name] = made[name]
                made[name].pipeline.start()
            self._hook()
            return Reloaded(new, changed, gone)

    async def wait(self) -> None:
        """Until every pipeline has ended by itself, with `once`."""
        await asyncio.gather(*(each.pipeline.wait() for each in self._running.values()))

    async def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Stop everything.

        Args:
            drain_s: How long finishing what is under way may take. What is cut off comes again with the next start.
        """
        async with self._turn:
            await asyncio.gather(*(each.pipeline.stop(drain_s=drain_s) for each in self._running.values()))

    async def failed(self) -> None:
        """Never returns: what fails is tried again, and the others go on meanwhile."""
        await asyncio.Event().wait()

    # --- for whoever operates it -------------------------------------------------------------------------------------

    def standings(self) -> Sequence[Standing]:
        """See `Pipelines`."""
        return [self._running[name].pipeline.standing() for name in sorted(self._running)]

    def errors(self) -> Mapping[str, Exception]:
        """Why pipelines failed last, by name."""
        return {name: each.pipeline.error for name, each in self._running.items() if each.pipeline.error is not None}

    async def checks(self) -> Sequence[Check]:
        """See `synckit_streams.ports.operation.Checks`: a pipeline that fails now may be well in a moment."""
        return [
            Check(
                f"pipeline {each.name}",
                each.state != "failed",
                needed=False,
                detail=each.error if each.state == "failed" else "",
            )
            for each in self.standings()
        ]

    async def pause(self, name: str) -> None:
        """See `Pipelines`."""
        await self._running[name].pipeline.pause(True)

    async def resume(self, name: str) -> None:
        """See `Pipelines`."""
        await self._running[name].pipeline.pause(False)

    async def restart(self, name: str) -> None:
        """See `Pipelines`."""
        async with self._turn:
            pipeline = self._running[name].pipeline
            await pipeline.stop()
            pipeline.start()
