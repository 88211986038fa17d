"""From a user's function to a call: what its parameters ask for, what it is given, and what its answer means.

A parameter of type `HandlerContext` gets the context, one with `Depends(...)` what its dependency gives (fast-depends,
FastStream's engine), and the one that is left the event: as its model (pydantic, msgspec, a dataclass), as `Event`, or
as plain JSON. All of it is decided when the handler is declared, so that a mistake shows there and not at the first
message.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from synckit_streams.errors import ConfigError, HandlerError, MissingDependency, PayloadUndecodable, Unfit
from synckit_streams.model.codec import check_draft
from synckit_streams.model.event import Draft, Event, Stored
from synckit_streams.runtime.handling import HandlerContext

Decode = Callable[[Event], Any]

_RAW = (Any, object, inspect.Parameter.empty)


def Depends(dependency: Callable[..., Any], *, use_cache: bool = True) -> Any:  # noqa: N802 - a marker, as in FastAPI
    """What a parameter is filled with: the result of calling this; of a generator, what it yields.

    A dependency may ask for others in the same way, and for the handler's own parameters by their names.

    Args:
        dependency: A function, a coroutine function, or a generator function of either kind, whose rest runs when the
            handler is done, and before the commit.
        use_cache: Whether it is called once for all who ask for it within one call.

    Raises:
        MissingDependency: fast-depends is not installed.
    """
    return _fast_depends().Depends(dependency, use_cache=use_cache, cast=False)


def _fast_depends() -> Any:
    try:
        import fast_depends
    except ImportError as error:
        raise MissingDependency(
            "dependency injection needs fast-depends", hint="pip install 'synckit-streams[app]'"
        ) from error
    return fast_depends


def _is_dependency(default: Any, annotation: Any) -> bool:
    marks = [default, *(get_args(annotation)[1:] if get_origin(annotation) is Annotated else ())]
    return any(
        type(each).__name__ == "Dependant" and type(each).__module__.startswith("fast_depends") for each in marks
    )


class Signature:
    """What a handler's function asks for.

    Args:
        function: The user's.
        batch: Whether it takes a list of events.
        provider: Of dependencies, where tests put others in their place.

    Raises:
        ConfigError: there is no parameter for the event, more than one, or one that cannot be filled.
    """

    def __init__(self, function: Callable[..., Any], *, batch: bool, provider: Any = None) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self._batch = batch
        # What runs: of a wrapped or partial function that one, of a callable object its method.
        self._body = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
        if not inspect.isroutine(self._body):
            self._body = type(function).__call__
        if inspect.isclass(function):
            raise self._wrong("is a class", "put @app.handler(…) above a function")
        if inspect.isgeneratorfunction(self._body) or inspect.isasyncgenfunction(self._body):
            raise self._wrong("is a generator", "return its drafts as a list")
        hints = self._hints()
        dependent = False
        events: list[str] = []
        self._context = ""
        for name, parameter in inspect.signature(function).parameters.items():
            annotation = hints.get(name, parameter.annotation)
            if _is_dependency(parameter.default, annotation):
                dependent = True
            elif annotation is HandlerContext:
                self._context = name
            elif HandlerContext in get_args(annotation):
                raise self._wrong(f"says that {name} may be something else", f"{name}: HandlerContext")
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                raise self._wrong(f"takes {name} by its position only", "leave out the / among its parameters")
            elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise self._wrong(f"takes *{name}", "name each parameter")
            elif parameter.default is parameter.empty:
                events.append(name)
        if len(events) != 1:
            named = ", ".join(events) or "none"
            raise self._wrong(
                f"needs one parameter for the event, and has {named}",
                "annotate the others: ctx: HandlerContext, or db = Depends(get_db)",
            )
        self._event = events[0]
        self.model = self._model(hints.get(self._event, Any))
        version = getattr(self.model, "schema_version", None)
        self.version = version if isinstance(version, int) else 0
        try:
            self._decode = decoder(self.model)
        except ConfigError as error:
            if not batch and get_origin(self.model) is list:
                raise self._wrong(f"takes a {self.model!r}", "to give it several events at once say batch=…") from error
            raise self._wrong(f"has an event's parameter that cannot be: {error.message}", error.hint) from error
        self._async = inspect.iscoroutinefunction(self._body)
        self._injected = self._inject(provider) if dependent else None

    def _hints(self) -> dict[str, Any]:
        try:
            return get_type_hints(self._body, include_extras=True)
        except NameError as error:
            raise self._wrong(
                f"has an annotation that is not known: {error}", "import it at the module's top"
            ) from error

    def _wrong(self, what: str, hint: str) -> ConfigError:
        return ConfigError(f"the handler {self.name!r} {what}", hint=hint)

    def _model(self, annotation: Any) -> Any:
        if not self._batch:
            return annotation
        if annotation in _RAW or annotation is list:
            return Any
        arguments = get_args(annotation)
        if get_origin(annotation) not in (list, Sequence, Iterable) or len(arguments) != 1:
            raise self._wrong(f"takes batches, and its parameter is a {annotation!r}", "annotate it as list[Event]")
        return arguments[0]

    def _inject(self, provider: Any) -> Any:
        _fast_depends()
        from fast_depends.core import build_call_model
        from fast_depends.dependencies import Provider

        return build_call_model(
            self.function, dependency_provider=provider or Provider(), serializer_cls=None, serialize_result=False
        )

    def given(self, stored: Sequence[Stored], upcast: Callable[[Event, int], Event]) -> Any:
        """What the event's parameter gets.

        Raises:
            Unfit: an event does not fit the model.
        """
        found = [self._decode(upcast(each.event, self.version)) for each in stored]
        return found if self._batch else found[0]

    async def call(self, given: Any, context: HandlerContext) -> Any:
        """Run it; gives what it returned."""
        arguments = {self._event: given}
        if self._context or self._injected is not None:
            arguments[self._context or "context"] = context
        if self._injected is not None:
            async with AsyncExitStack() as stack:
                return await self._injected.asolve(stack=stack, cache_dependencies={}, **arguments)
        if self._async:
            return await self.function(**arguments)
        return await _in_thread(self.function, arguments)


async def _in_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call it in a thread. Nobody can end a thread: whoever is cancelled here waits until it has ended by itself, or
    the next attempt would run beside it."""
    work = asyncio.ensure_future(asyncio.to_thread(function, **arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def decoder(model: Any) -> Decode:
    """How an event becomes a model.

    Raises:
        ConfigError: it is no type that JSON can become.
        MissingDependency: it is pydantic's, and that is not installed.
    """
    if model is Event:
        return lambda event: event
    if model in _RAW:
        return _plain
    if isinstance(model, type) and issubclass(model, msgspec.Struct):
        decode = msgspec.json.Decoder(model).decode

        def structured(event: Event) -> Any:
            try:
                return decode(event.payload)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise Unfit(f"{event.key} does not fit {model.__name__}: {error}") from error

        return structured
    try:
        from pydantic import TypeAdapter, ValidationError
        from pydantic.errors import PydanticSchemaGenerationError
    except ImportError as error:
        raise MissingDependency(
            f"to validate {model!r} pydantic is needed", hint="pip install 'synckit-streams[app]'"
        ) from error
    try:
        validate = TypeAdapter(model).validate_json
    except PydanticSchemaGenerationError as error:
        raise ConfigError(
            f"{model!r:.80} is nothing that JSON can become", hint="take a pydantic model, a msgspec Struct, or Event"
        ) from error

    def validated(event: Event) -> Any:
        try:
            return validate(event.payload)
        except ValidationError as error:
            raise Unfit(f"{event.key} does not fit {getattr(model, '__name__', model)}: {error}") from error

    return validated


def _plain(event: Event) -> Any:
    try:
        return event.data
    except PayloadUndecodable as error:
        raise Unfit(error.message) from error


def drafts_of(answer: Any, whose: str) -> list[Draft]:
    """What a handler returned, as drafts.

    Raises:
        HandlerError: it is neither None, nor a Draft, nor several.
        Invalid, TooLarge: a draft cannot be written.
    """
    if answer is None:
        return []
    drafts = [answer] if isinstance(answer, Draft) else answer
    if isinstance(drafts, str | bytes | Mapping) or not isinstance(drafts, Iterable):
        raise HandlerError(f"{whose} returned {answer!r:.80}", hint="return a Draft, a list of them, or nothing")
    found = list(drafts)
    for draft in found:
        if not isinstance(draft, Draft):
            raise HandlerError(f"{whose} returned {draft!r:.80} among its drafts", hint="return Draft(topic=…, type=…)")
        check_draft(draft)
    return found
