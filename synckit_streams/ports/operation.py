"""What runs here, told to whoever operates it: how it is, what is paused, and what comes in from outside.

Whoever serves it (`synckit_streams.http`) takes callables for what it shows, and knows neither apps nor pipelines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable


class Check(NamedTuple):
    """How one part is at this moment.

    Args:
        name: Of the part, as in "store" or "nats://127.0.0.1:4222".
        ok: Whether it works.
        needed: False for what may be away without harm, as a broker may: then the whole is degraded, and ready.
        detail: In words, for whoever looks.
    """

    name: str
    ok: bool
    needed: bool = True
    detail: str = ""


Checks = Callable[[], Awaitable[Sequence[Check]]]
"""Asks every part, quickly: whoever asks has a deadline of his own."""


@runtime_checkable
class Service(Protocol):
    """What `synckit run` runs: an application of this library, or anything else that has these six."""

    name: str
    shared: bool
    """Whether several processes may run it at once, as those may whose store is shared."""

    async def start(self) -> None:
        """Open everything, and begin to work. It may be cancelled.

        Raises:
            ConfigError: nothing but a change of the program or its settings will help.
            SyncKitError: it cannot be started now.
        """

    async def stop(self, *, drain_s: float) -> None:
        """Finish what is under way, cut off what is not finished in time, and close what is open.

        It is called once, also after a `start` that raised or was cancelled.

        Args:
            drain_s: How many seconds that may take; 0 cuts off at once.
        """

    async def failed(self) -> None:
        """Raises when the service cannot go on, and until then does not return."""

    async def checks(self) -> Sequence[Check]:
        """How each part is; see `Checks`."""


State = Literal["running", "paused", "failed", "stopped"]


class Standing(NamedTuple):
    """How one pipeline is.

    Args:
        name: Its own.
        state: "failed" is tried again by itself; "stopped" is not.
        source: Where it reads, without passwords.
        sink: Where it writes, likewise.
        moved: Records that were delivered since it was started.
        dead: Records that went to the dead letter since then.
        lag: Records that are there and were not moved yet; None where the source cannot say.
        error: Why it failed last; "" if it did not.
    """

    name: str
    state: State
    source: str
    sink: str
    moved: int = 0
    dead: int = 0
    lag: int | None = None
    error: str = ""


@runtime_checkable
class Pipelines(Protocol):
    """What can be looked at, paused and restarted by name. Unknown names raise `KeyError`."""

    def standings(self) -> Sequence[Standing]:
        """All of them, by name."""

    async def pause(self, name: str) -> None:
        """Finish what is under way, and take nothing more; it is remembered over a restart."""

    async def resume(self, name: str) -> None:
        """Go on."""

    async def restart(self, name: str) -> None:
        """Stop, and start again from where it stands."""


class Hooked(NamedTuple):
    """The answer to a webhook.

    Args:
        status: HTTP status.
        text: Why, if it was not taken.
    """

    status: int
    text: str = ""


Webhook = Callable[[Mapping[str, str], bytes], Awaitable[Hooked]]
"""Takes headers (names in lower case) and a body; returns when what came is durably kept."""


@runtime_checkable
class Hooks(Protocol):
    """A service that takes webhooks."""

    @property
    def hooks(self) -> Mapping[str, Webhook]:
        """By name; it may change while it runs."""
