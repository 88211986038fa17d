"""What an app receives and sends, as a document of AsyncAPI 3: for people, and for programs that make clients of it.

Everything is read from the declarations, so no broker and no store is asked. A channel is a topic on one broker, with
the address that other tools find it under; a handler or a projection is an operation that receives; what a handler says
it returns (`Sends`), and the dead letters of its group, are operations that send. A message is a type of event, with
the JSON schema of the model that its handlers take it as.

Source: AsyncAPI 3.0.0; CloudEvents 1.0.2.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from synckit_streams.app.app import App
from synckit_streams.app.declared import DeclaredHandler, DeclaredProjection
from synckit_streams.app.message_schema import Schemas, cloudevent_headers
from synckit_streams.errors import MissingDependency
from synckit_streams.model.codec import NAME_BYTES_MAX, check_text, check_topic
from synckit_streams.ports.connector import Connector
from synckit_streams.runtime.policy import DEAD_LETTER, PURGED, REDRIVEN, DeadLetter, Settled
from synckit_streams.runtime.registry import connector_for

VERSION = "3.0.0"
OTHER = "*"
"""Stands for the types that nobody names."""
PROTOCOLS = {"tls": "nats"}
"""URL schemes that AsyncAPI has another name for."""


class Sends:
    """What a handler returns, said in its annotation: `-> Annotated[Draft, Sends("invoices", "invoice.written")]`.

    It is for the document alone; what the handler returns in fact is not held against it.

    Args:
        topic: Of the draft.
        type: Of the draft.
        model: What its data looks like: a pydantic model, a msgspec Struct, a dataclass; left out, anything.

    Raises:
        Invalid, TooLarge: the topic or the type cannot be.
    """

    def __init__(self, topic: str, type: str, model: Any = Any) -> None:
        check_topic(topic)
        check_text("an event type", type, bytes_max=NAME_BYTES_MAX)
        self.topic = topic
        self.type = type
        self.model = model


class Server(NamedTuple):
    """A broker as the document knows it.

    Args:
        names: Its servers' names in the document: one for each host.
        connector: Knows the addresses of topics.
        protocol: As AsyncAPI calls it.
    """

    names: tuple[str, ...]
    connector: Connector
    protocol: str

    def address_of(self, topic: str) -> str | None:
        """Where a topic's events are; None if the connector does not say."""
        told: Callable[[str], str] | None = getattr(self.connector, "address_of", None)
        return None if told is None else told(topic)


class Names:
    """Names that the document may have, each for one thing."""

    def __init__(self) -> None:
        self._names: dict[Any, str] = {}

    def name(self, what: Any, wanted: str) -> str:
        """The name of a thing: always the same one."""
        if what not in self._names:
            base = re.sub(r"[^A-Za-z0-9_.-]+", "_", wanted) or "_"
            taken, number, name = set(self._names.values()), 1, base
            while name in taken:
                number += 1
                name = f"{base}-{number}"
            self._names[what] = name
        return self._names[what]


def asyncapi(app: App, *, version: str = "1.0.0", description: str = "") -> dict[str, Any]:
    """The document of an app, ready to be written as JSON or YAML.

    Args:
        app: As it is declared; it need not run.
        version: Of the application.
        description: What it is for, in CommonMark.

    Raises:
        ConfigError: a connector's URL is wrong, or a model has no JSON schema.
        MissingDependency: a connector's client, or pydantic for its models, is not installed.
    """
    return _Document(app).made(version, description)


class _Document:
    def __init__(self, app: App) -> None:
        self._app = app
        self._schemas = Schemas()
        self._servers: dict[str, dict[str, Any]] = {}
        self._brokers = [self._broker(each) for each in app._connectors]
        self._channels: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, dict[str, Any]] = {}
        self._channel_names, self._operation_names = Names(), Names()
        self._models: dict[tuple[str, str], list[Any]] = {}
        """Of each topic and type: the models that handlers take it as."""

    def made(self, version: str, description: str) -> dict[str, Any]:
        self._learn_models()
        for handler in self._app.handlers:
            self._add_handler(handler)
        for projection in self._app.projections:
            self._add_projection(projection)
        for topic in self._app.topics:
            for broker in self._everywhere():
                self._channel(topic, broker)
        info = {"title": self._app.name, "version": version}
        found: dict[str, Any] = {"asyncapi": VERSION, "info": info | _if(description=description)}
        found |= _if(servers=self._servers)
        found |= {"defaultContentType": "application/json", "channels": self._channels, "operations": self._operations}
        return found | _if(components=_if(schemas=self._schemas.all))

    # --- servers and channels ----------------------------------------------------------------------------------------

    def _broker(self, connector: str | Connector) -> Server:
        made = connector_for(connector)
        url = getattr(made, "url", "") or type(made).__name__  # without user and password, as the port has it
        scheme, found, rest = url.partition("://")
        names: list[str] = []
        for each in rest.split(",") if found else [url]:
            host, _, path = each.rpartition("://")[2].partition("/")
            number = sum(name == scheme or name.startswith(f"{scheme}-") for name in self._servers) + 1
            name = scheme if number == 1 else f"{scheme}-{number}"
            server = {"host": host or "localhost", "protocol": PROTOCOLS.get(scheme, scheme)}
            self._servers[name] = server | _if(pathname=f"/{path}" if path else "")
            names.append(name)
        return Server(tuple(names), made, PROTOCOLS.get(scheme, scheme))

    def _everywhere(self) -> Sequence[Server | None]:
        return self._brokers or [None]

    def _channel(self, topic: str, broker: Server | None) -> str:
        """The name of a topic's channel on a broker; makes it if it is new."""
        several = len(self._brokers) > 1 and broker is not None
        wanted = f"{topic}.{broker.names[0]}" if several and broker is not None else topic
        name = self._channel_names.name((topic, broker and broker.names), wanted)
        if name in self._channels:
            return name
        messages = {}
        names = Names()
        types = [each for each in self._models if each[0] == topic] or [(topic, OTHER)]
        for _, type in types:
            key = names.name(type, "other" if type == OTHER else type)
            messages[key] = self._message(topic, type, broker)
        told = f"Every event of the topic `{topic}`."
        if self._app._options.get("packing") == "batch":
            told += " They travel in frames, many in a message (`application/vnd.synckit.frame+msgpack`)."
        channel: dict[str, Any] = {
            "address": None if broker is None else broker.address_of(topic),
            "title": topic,
            "description": told,
            "messages": messages,
        }
        if broker is not None:
            channel["servers"] = [_ref("servers", each) for each in broker.names]
        self._channels[name] = channel
        return name

    def _message(self, topic: str, type: str, broker: Server | None) -> dict[str, Any]:
        kafka = broker is not None and broker.protocol == "kafka"
        headers = self._schemas.put("CloudEventsOnKafka" if kafka else "CloudEvents", cloudevent_headers(kafka=kafka))
        models = self._models.get((topic, type), [])
        schemas = [schema for each in models if (schema := self._schemas.of(each))]
        message: dict[str, Any] = {"headers": headers, "contentType": "application/json"}
        if type == OTHER:
            message |= {"title": "any other type"}
        else:
            message |= {"name": type, "title": type}
        versions = sorted({version for each in models if (version := _version(each))})
        if versions:
            message["x-schema-version"] = versions[-1]
        if schemas:
            message["payload"] = schemas[0] if len(schemas) == 1 else {"allOf": schemas}
        return message

    # --- operations --------------------------------------------------------------------------------------------------

    def _learn_models(self) -> None:
        for handler in self._app.handlers:
            for topic in handler.topics:
                for type in handler.types or (OTHER,):
                    self._learn(topic, type, handler.signature.model)
            for sent in sends(handler.signature.function):
                self._learn(sent.topic, sent.type, sent.model)
            self._learn(handler.dead_letter, DEAD_LETTER, DeadLetter)
            self._learn(handler.dead_letter, REDRIVEN, Settled)
            self._learn(handler.dead_letter, PURGED, Settled)
        for projection in self._app.projections:
            for topic in projection.topics or self._app.topics:
                for type in projection.types or (OTHER,):
                    self._learn(topic, type, Any)

    def _learn(self, topic: str, type: str, model: Any) -> None:
        models = self._models.setdefault((topic, type), [])
        if model not in models:
            models.append(model)

    def _add_handler(self, handler: DeclaredHandler) -> None:
        group = handler.options.group
        whose = f"{group}.{handler.name}"
        told = _told(handler.signature.function) | {"tags": [{"name": f"group {group}"}]}
        for topic in handler.topics:
            self._operate("receive", whose, topic, handler.types, told)
        for sent in sends(handler.signature.function):
            self._operate("send", f"{whose}.sends.{sent.type}", sent.topic, [sent.type], {"summary": f"By {whose}."})
        give_up = {"summary": f"What {whose} gives up, after {handler.retry.max_attempts} attempts at most."}
        self._operate("send", f"{whose}.gives-up", handler.dead_letter, [DEAD_LETTER], give_up)

    def _add_projection(self, projection: DeclaredProjection) -> None:
        told = _told(projection._function) | {"tags": [{"name": "projection"}]}
        for topic in projection.topics or self._app.topics:
            self._operate("receive", f"projection.{projection.name}", topic, projection.types, told)

    def _operate(self, action: str, whose: str, topic: str, types: Sequence[str], told: dict[str, Any]) -> None:
        for broker in self._everywhere():
            channel = self._channel(topic, broker)
            name = self._operation_names.name((whose, channel), whose)
            operation: dict[str, Any] = {"action": action, "channel": _ref("channels", channel), "title": whose, **told}
            if types:
                titles = {each["title"]: key for key, each in self._channels[channel]["messages"].items()}
                operation["messages"] = [_ref("channels", channel, "messages", titles[each]) for each in types]
            self._operations[name] = operation


def sends(function: Callable[..., Any]) -> list[Sends]:
    """What a handler says in its annotation that it returns."""
    target = function if inspect.isroutine(function) else type(function).__call__
    return list(_marks(get_type_hints(target, include_extras=True).get("return")))


def _marks(annotation: Any) -> Iterator[Sends]:
    if get_origin(annotation) is Annotated:
        yield from (each for each in annotation.__metadata__ if isinstance(each, Sends))
    for each in get_args(annotation):
        if not isinstance(each, Sends):
            yield from _marks(each)


def _version(model: Any) -> int:
    version = getattr(model, "schema_version", 0)
    return version if isinstance(version, int) else 0


def _told(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function's docstring says."""
    summary, _, more = (inspect.getdoc(function) or "").partition("\n")
    return _if(summary=summary, description=more.strip())


def _if(**parts: Any) -> dict[str, Any]:
    """Those that there are."""
    return {name: each for name, each in parts.items() if each}


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": f"#/{'/'.join(path)}"}


def as_json(document: dict[str, Any]) -> str:
    """The document as JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def as_yaml(document: dict[str, Any]) -> str:
    """The document as YAML.

    Raises:
        MissingDependency: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingDependency("YAML needs PyYAML", hint="pip install 'synckit-streams[app]'") from error
    written: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return written
