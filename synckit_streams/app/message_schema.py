"""The JSON schemas of messages: of the models that handlers take, by pydantic or msgspec, and of CloudEvents' headers.

AsyncAPI's schemas are JSON Schema draft 07, and pydantic writes 2020-12; the two words in which they differ here are
put into the older tongue.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import msgspec

from synckit_streams.errors import ConfigError, MissingDependency
from synckit_streams.model.cloudevent import KAFKA_PREFIX, PREFIX
from synckit_streams.model.event import Event

PLACE = "#/components/schemas/"
_ANYTHING = (Any, object, Event, None, inspect.Parameter.empty)

_HEADERS = {
    "specversion": "Of CloudEvents.",
    "id": "Idempotency key of the fact; the same id is the same event.",
    "source": "`/synckit/<topic>/<origin>`, both percent-encoded.",
    "type": "What happened.",
    "subject": "The aggregate: the thing that it happened to.",
    "time": "When, in UTC.",
    "skseq": "Number of the event within its origin and topic.",
    "skprev": "The origin's previous number on this aggregate, 0 for the first.",
    "skhlc": "Hybrid time: milliseconds since 1970, times 65,536, plus a counter.",
    "skver": "Schema version of the type's data.",
    "skhash": "SHA-256 over the canonical form, in hexadecimal.",
    "skctx": "What its writer knew of the aggregate: MessagePack in base64; left out when empty.",
    "skafter": "Causes beside the aggregate: MessagePack in base64; left out when empty.",
    "skmeta": "The metadata as JSON; left out when empty.",
    "traceparent": "W3C trace context of the writing; left out when empty.",
}
_OPTIONAL = {"skctx", "skafter", "skmeta", "traceparent"}


def cloudevent_headers(*, kafka: bool) -> dict[str, Any]:
    """The schema of an event's headers in CloudEvents' binary mode.

    Args:
        kafka: With the names that its binding has, `ce_id` in place of `ce-id`.
    """
    prefix = KAFKA_PREFIX if kafka else PREFIX
    found = {f"{prefix}{name}": {"type": "string", "description": told} for name, told in _HEADERS.items()}
    found[f"{prefix}specversion"]["const"] = "1.0"
    found["content-type" if kafka else f"{prefix}datacontenttype"] = {"type": "string", "description": "Of the body."}
    required = [f"{prefix}{name}" for name in _HEADERS if name not in _OPTIONAL]
    return {"type": "object", "properties": found, "required": required}


class Schemas:
    """The schemas of a document, each once and under its own name."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, Any]] = {}

    def put(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        """One that is there already, or is new; gives the reference to it."""
        self.all[name] = schema
        return {"$ref": f"{PLACE}{name}"}

    def of(self, model: Any) -> dict[str, Any]:
        """The schema of a model, or the reference to it; empty for what may be anything.

        Raises:
            ConfigError: it has none.
            MissingDependency: it is pydantic's, and that is not installed.
        """
        if any(model is each for each in _ANYTHING):
            return {}
        for number in itertools.count(1):
            # Two models of one name, from two modules, are two schemas.
            mark = "" if number == 1 else f"-{number}"
            schema, parts = _schema_of(model, mark)
            if all(self.all.get(name, part) == part for name, part in parts.items()):
                self.all |= parts
                return schema
        raise AssertionError("unreachable")


def _schema_of(model: Any, mark: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A model's schema, and those that it refers to, whose names end with `mark`."""
    try:
        if isinstance(model, type) and issubclass(model, msgspec.Struct):
            (schema,), parts = msgspec.json.schema_components([model], ref_template=f"{PLACE}{{name}}{mark}")
        else:
            schema, parts = _schema_of_pydantic(model, f"{PLACE}{{model}}{mark}")
    except (TypeError, ValueError, RuntimeError) as error:  # pydantic's own errors are among them
        raise ConfigError(
            f"{model!r:.80} has no JSON schema: {error}", hint="give the field a type that JSON can say"
        ) from error
    named = {f"{name}{mark}": _as_draft_07(part) for name, part in parts.items()}
    schema = _as_draft_07(schema)
    if "$ref" not in schema and isinstance(model, type) and schema.get("type") == "object":
        named[f"{model.__name__}{mark}"] = schema
        schema = {"$ref": f"{PLACE}{model.__name__}{mark}"}
    return schema, named


def _schema_of_pydantic(model: Any, template: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    try:
        from pydantic import TypeAdapter
    except ImportError as error:
        raise MissingDependency(
            f"the schema of {model!r:.80} needs pydantic", hint="pip install 'synckit-streams[app]'"
        ) from error
    schema = TypeAdapter(model).json_schema(ref_template=template)
    return schema, schema.pop("$defs", {})


def _as_draft_07(schema: Any) -> Any:
    """A schema in the words that AsyncAPI knows."""
    if isinstance(schema, list):
        return [_as_draft_07(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for word, value in schema.items():
        if word == "discriminator" and isinstance(value, dict):
            found[word] = value["propertyName"]
        elif word == "prefixItems":
            found["items"] = _as_draft_07(value)
        elif word == "properties":  # a field may be called like a word
            found[word] = {name: _as_draft_07(each) for name, each in value.items()}
        elif word in ("default", "examples", "enum", "const"):
            found[word] = value
        else:
            found[word] = _as_draft_07(value)
    return found
