"""What becomes of an event whose handler raised, in a fixed order: wait and try again, then the dead-letter topic.

The order is not for users to choose: with retry and dead letter as two middlewares, half of them put the wrong one
outside. What they choose is how often, how long, and what counts as a dependency that is down.
"""

from __future__ import annotations

import traceback
from typing import Any

import msgspec

from synckit_streams.errors import ConfigError, FeatureUnsupported, MissingDependency
from synckit_streams.model.event import Draft, Stored
from synckit_streams.sync.pace import next_delay_ms

DEAD_LETTER = "synckit.dead_letter"
"""Type of the event that keeps what could not be handled."""
REDRIVEN = "synckit.dead_letter.redriven"
"""Type of the event that puts it back."""
PURGED = "synckit.dead_letter.purged"
"""Type of the event that says that nobody wants it any more."""
MISTAKES = (FeatureUnsupported, MissingDependency)
"""See `mistake_in`. Not every ConfigError: what a URL names may be up to an event, and poison stops nobody."""
TRACEBACK_CHARS_MAX = 8_000
"""Of a traceback, so much of its end is kept in a dead letter."""
EMBEDDED_BYTES_MAX = 500_000
"""A larger payload is not copied into the dead letter, which has the same limit as any event; it stays in the log."""
REASON_CHARS_MAX = 500
"""Of an error's text, so much is kept with an event that waits for its next attempt."""


class Retry(msgspec.Struct, frozen=True):
    """How often an event is tried, and how long it waits in between: exponential, with full jitter.

    Args:
        max_attempts: With the first one; 1 never tries again.
        base_ms: Upper bound of the first wait, in milliseconds; it doubles with each failure.
        delay_ms_max: Longest wait.
    """

    max_attempts: int = 5
    base_ms: int = 200
    delay_ms_max: int = 60_000

    def check(self, whose: str) -> None:
        """That it can be carried out.

        Raises:
            ConfigError: a number is out of its range.
        """
        for name, least in (("max_attempts", 1), ("base_ms", 0), ("delay_ms_max", 0)):
            number = getattr(self, name)
            if type(number) is not int or number < least:
                raise ConfigError(
                    f"{whose}: {name}={number!r:.80} is not a whole number from {least} on",
                    hint="for example Retry(max_attempts=5, base_ms=200)",
                )

    def delay_ms(self, failures: int, dice: float) -> int:
        """How long to wait after so many failures, from 1."""
        return next_delay_ms(failures, base_ms=self.base_ms, delay_ms_max=self.delay_ms_max, dice=dice)


class Breaker(msgspec.Struct, frozen=True):
    """When a handler's dependency counts as down: then this handler pauses, and no attempts are burnt.

    Args:
        errors: Exceptions that say so. They are an event's own fault as long as other events succeed.
        failures: So many in a row, with no success between them, open it.
        pause_ms: Upper bound of the first pause, in milliseconds; it doubles as long as the next try fails too.
        pause_ms_max: Longest pause.
    """

    errors: tuple[type[BaseException], ...] = (ConnectionError,)
    failures: int = 5
    pause_ms: int = 1_000
    pause_ms_max: int = 60_000

    def check(self, whose: str) -> None:
        """That it can be carried out.

        Raises:
            ConfigError: a number is out of its range, or `errors` are no exceptions.
        """
        for name in ("failures", "pause_ms", "pause_ms_max"):
            number = getattr(self, name)
            if type(number) is not int or number < 1:
                raise ConfigError(f"{whose}: {name}={number!r:.80} is not a whole number from 1 on")
        if not isinstance(self.errors, tuple) or not all(
            isinstance(each, type) and issubclass(each, BaseException) for each in self.errors
        ):
            raise ConfigError(
                f"{whose}: errors={self.errors!r:.80} are no exceptions", hint="for example Breaker((ConnectionError,))"
            )


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a dead letter: everything that is needed to understand it, and to put it back.

    Args:
        group: Whose handler gave it up.
        handler: Which one.
        node: Under which node id the group ran.
        position: Where the event stands in that node's log.
        attempts: How often it was tried.
        error: Type and text of the last exception.
        traceback: Its end.
        event: The event that could not be handled, as JSON.
    """

    group: str
    handler: str
    node: str
    position: int
    attempts: int
    error: str
    traceback: str
    event: dict[str, Any]


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The data of what puts a dead letter back, or purges it.

    Args:
        letter: Id of the dead letter.
        group: As in the dead letter.
        node: As in the dead letter.
        position: As in the dead letter.
        topic: Of the event that could not be handled.
        aggregate_id: Its aggregate.
    """

    letter: str
    group: str
    node: str
    position: int
    topic: str
    aggregate_id: str


class Killed(Exception):
    """The process ended without a word while an event was handled: by a signal, or for want of memory."""

    def __init__(self) -> None:
        super().__init__("it killed its process")


KILLS_MIN = 3
"""So often that must have happened, whatever `max_attempts` is: it may have been somebody else's doing."""


def mistake_in(error: BaseException) -> ConfigError | None:
    """What of an error is the program's mistake and no event's: whichever event comes, the call cannot be done here.
    A group ends by it, and nothing is tried, counted or given up. Also from within an exception group."""
    while isinstance(error, BaseExceptionGroup) and (found := error.subgroup(MISTAKES)) is not None:
        error = found.exceptions[0]
    return error if isinstance(error, MISTAKES) else None


def reason_of(error: BaseException) -> str:
    """An error in a line, whatever it is: what it says is a stranger's, and is to be written as JSON. Of a group, its
    first one says more."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    try:
        said = str(error)
    except Exception as worse:  # noqa: BLE001 - told
        said = f"its text cannot be had ({type(worse).__name__})"
    return _writable(f"{type(error).__name__}: {said}"[:REASON_CHARS_MAX])


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, which the name of a file brings along that is not UTF-8."""
    return text.encode(errors="replace").decode()


def _shown(payload: bytes) -> Any:
    """A payload as JSON can say it."""
    if len(payload) > EMBEDDED_BYTES_MAX:
        return {"omitted_bytes": len(payload)}
    try:
        msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {"base64": payload}
    return msgspec.Raw(payload)


def dead_letter(topic: str, stored: Stored, attempts: int, error: BaseException, **names: str) -> Draft:
    """What is written when an event is given up.

    Args:
        topic: The dead-letter topic.
        stored: The event.
        attempts: How often it was tried.
        error: Of the last attempt.
        names: `group`, `handler` and `node`.
    """
    event = stored.event
    told = _writable("".join(traceback.format_exception(error))[-TRACEBACK_CHARS_MAX:])
    shown = {
        "id": event.id,
        "topic": event.topic,
        "type": event.type,
        "aggregate_id": event.aggregate_id,
        "origin": event.origin,
        "seq": event.seq,
        "schema_version": event.schema_version,
        "metadata": event.metadata,
        "data": _shown(event.payload),
    }
    letter = DeadLetter(
        **names, position=stored.position, attempts=attempts, error=reason_of(error), traceback=told, event=shown
    )  # fmt: skip
    return Draft(
        topic=topic,
        type=DEAD_LETTER,
        aggregate_id=f"{names['group']}/{event.topic}/{event.id}"[:10_000],
        data=msgspec.json.encode(letter),
        after=(event.key,),
    )
