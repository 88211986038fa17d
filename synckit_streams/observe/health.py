"""How a process is, as probes and people ask: every part is looked at, and the worst of them is the whole.

Theory of operation. A *source* knows some parts and tells how each of them is. It is asked in a task of its own: what
it raises, and that it does not answer in time, is an answer as well, namely that it is down. A part that may be away
without harm makes the whole `degraded`, which still is ready. A source that is being asked is not asked a second
time, so a probe every second piles nothing up before a source that hangs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from synckit_streams.ports.operation import Check, Checks

ANSWER_S = 2.0
"""How long a source may take: probes commonly wait for a few seconds at most."""

Status = Literal["up", "degraded", "down", "unknown"]
Phase = Literal["starting", "running", "stopping"]

_WORST_FIRST: tuple[Status, ...] = ("down", "unknown", "degraded", "up")


class Result(NamedTuple):
    """How one part is.

    Args:
        component: The source that knows it.
        name: Of the part.
        status: "degraded" is away, and not needed just now.
        message: In words.
        needed: Whether the whole is down without it.
        duration_s: How long its source took to answer.
    """

    component: str
    name: str
    status: Status
    message: str = ""
    needed: bool = True
    duration_s: float = 0.0


class Report(NamedTuple):
    """How the whole is.

    Args:
        check_type: What was asked: "health", "liveness", "readiness", "startup" or "components".
        results: By the name under which they are told.
        at: When it was asked.
        duration_s: How long that took.
    """

    check_type: str
    results: Mapping[str, Result]
    at: datetime
    duration_s: float

    @property
    def status(self) -> Status:
        """That of the worst part; without any, nothing is known."""
        found = {each.status for each in self.results.values()}
        return next((status for status in _WORST_FIRST if status in found), "unknown")

    @property
    def serving(self) -> bool:
        """Whether a probe is to be content."""
        return self.status in ("up", "degraded")

    def body(self) -> dict[str, Any]:
        """As it is told in JSON. Durations are nanoseconds and times RFC 3339, as go-sync-kit tells them."""
        at = self.at.isoformat().replace("+00:00", "Z")
        statuses = [each.status for each in self.results.values()]
        return {
            "status": self.status,
            "check_type": self.check_type,
            "results": {
                name: {
                    "status": each.status,
                    "component": each.component,
                    "message": each.message,
                    "details": {"needed": each.needed},
                    "timestamp": at,
                    "duration": round(each.duration_s * 1e9),
                }
                for name, each in self.results.items()
            },
            "summary": {
                "total": len(statuses),
                **{status: statuses.count(status) for status in ("up", "down", "degraded", "unknown")},
            },
            "timestamp": at,
            "duration": round(self.duration_s * 1e9),
        }


class Health:
    """Asks the sources, and answers what probes ask.

    Args:
        sources: Gives those that there are just now, by name: what has not started yet is not to be asked.
        answer_s: How long each of them may take.
    """

    def __init__(self, sources: Callable[[], Mapping[str, Checks]], *, answer_s: float = ANSWER_S) -> None:
        self._sources = sources
        self._answer_s = answer_s
        self._asking: dict[str, asyncio.Task[list[Check]]] = {}
        self.phase: Phase = "starting"
        """Whoever runs the whole says so: it is ready only while it is running."""

    async def live(self) -> Report:
        """Whether this process answers at all; a restart would mend nothing else."""
        return _report("liveness", [Result("process", "process", "up")], time.monotonic())

    async def startup(self) -> Report:
        """Whether it has started."""
        if self.phase == "starting":
            return _report("startup", [_STARTING], time.monotonic())
        return _report("startup", [Result("process", "startup", "up")], time.monotonic())

    async def ready(self) -> Report:
        """Whether it can do its work now."""
        return await self.report("readiness")

    async def report(self, check_type: str = "health") -> Report:
        """Everything.

        Args:
            check_type: What the report says that it is.
        """
        began = time.monotonic()
        sources = self._sources()
        answers = await asyncio.gather(*(self._results(name, checks) for name, checks in sources.items()))
        results = [each for answer in answers for each in answer]
        if self.phase == "starting":
            results.append(_STARTING)
        elif self.phase == "stopping":
            results.append(Result("process", "shutdown", "down", "it finishes what is under way, and ends"))
        return _report(check_type, results, began, plain=len(sources) == 1)

    async def _results(self, source: str, checks: Checks) -> Sequence[Result]:
        began = time.monotonic()
        task = self._asking.get(source)
        if task is None or task.done():
            task = self._asking[source] = asyncio.create_task(_asked(checks))
        # Not wait_for, which waits for the end of what it cancels: a source that hangs may not care about that.
        await asyncio.wait({task}, timeout=self._answer_s)
        took = time.monotonic() - began
        if not task.done() or task.cancelled():
            task.cancel()
            return [Result(source, source, "down", f"no answer within {self._answer_s:g} s", duration_s=took)]
        error = task.exception()
        if error is not None:
            return [Result(source, source, "down", f"{type(error).__name__}: {error}", duration_s=took)]
        told = [Result(source, each.name, _status(each), each.detail, each.needed, took) for each in task.result()]
        return told or [Result(source, source, "up", duration_s=took)]


_STARTING = Result("process", "startup", "unknown", "it is still starting")


async def _asked(checks: Checks) -> list[Check]:
    try:
        return [Check(*each) for each in await checks()]
    except SystemExit as ended:
        # In a task it would end the process: a look at how we are must not be what stops us.
        raise RuntimeError(f"a check tried to end the process with status {ended.code}") from ended


def _status(check: Check) -> Status:
    if check.ok:
        return "up"
    return "down" if check.needed else "degraded"


def _report(check_type: str, results: Sequence[Result], began: float, *, plain: bool = True) -> Report:
    """Args: plain: One source alone has told them, and its name need not stand before each."""
    named: dict[str, Result] = {}
    for each in results:
        name = each.name if plain or each.component in (each.name, "process") else f"{each.component}/{each.name}"
        named[name if name not in named else f"{name}#{len(named)}"] = each
    return Report(check_type, named, datetime.now(UTC), time.monotonic() - began)
