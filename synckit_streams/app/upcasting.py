"""Events of an earlier version of their type, made into the present one when they are read; the log stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from synckit_streams.errors import ConfigError, Unfit
from synckit_streams.model.codec import encode_payload
from synckit_streams.model.event import Event

Upcaster = Callable[[Any], Any]
"""From the data of one version to that of the next one."""


class Upcasters:
    """Steps from one version of a type to the next."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, int], Upcaster] = {}

    def add(self, type_: str, from_version: int, step: Upcaster) -> None:
        """One step.

        Raises:
            ConfigError: there is one already, or it is a coroutine function or from no version.
        """
        if type(from_version) is not int or from_version < 1:
            raise ConfigError(
                f"{type_!r} has an upcaster from version {from_version!r:.80}", hint="from_version=1, say"
            )
        if inspect.iscoroutinefunction(step):
            raise ConfigError(
                f"{type_!r} has an upcaster that is a coroutine function", hint="write it with a plain def"
            )
        if (type_, from_version) in self._steps:
            raise ConfigError(f"{type_!r} has two upcasters from version {from_version}", hint="one step leads on")
        self._steps[type_, from_version] = step

    def upcast(self, event: Event, version: int) -> Event:
        """The event as a version of its type that the handler knows; 0 takes whatever comes.

        Raises:
            Unfit: it is of a later version, or there is no step from an earlier one.
        """
        if not version or event.schema_version == version:
            return event
        if event.schema_version > version:
            raise Unfit(
                f"{event.key} is {event.type} of version {event.schema_version}, and the handler knows {version}",
                hint="deploy the later code, then `synckit dlq redrive`",
            )
        data = event.data
        for each in range(event.schema_version, version):
            step = self._steps.get((event.type, each))
            if step is None:
                raise Unfit(
                    f"{event.key} is {event.type} of version {event.schema_version}; there is no upcaster from {each}",
                    hint=f'add @app.upcast("{event.type}", from_version={each}), then `synckit dlq redrive`',
                )
            data = step(data)
        return msgspec.structs.replace(event, payload=encode_payload(data), schema_version=version)
