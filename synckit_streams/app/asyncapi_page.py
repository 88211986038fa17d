"""The document as one HTML page: no script, and nothing fetched from elsewhere, so it is there offline, too.

What stands in it came out of somebody's code and docstrings, and is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import msgspec

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow: auto; background: var(--soft); padding: .8rem; border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem; vertical-align: top;
border-bottom: 1px solid var(--line); }
section { border: 1px solid var(--line); border-radius: .5rem; padding: .2rem 1rem 1rem; margin: 1rem 0; }
.receive, .send { color: #fff; border-radius: .3rem; padding: .1rem .5rem; font-size: .8em; }
.receive { background: #1565c0; } .send { background: #2e7d32; } .told { white-space: pre-line; }
"""


def to_html(document: Mapping[str, Any]) -> str:
    """The page of a document that `asyncapi` made."""
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        _told(info),
        *_servers(document.get("servers", {})),
        "<h2>Operations</h2>",
        *(_operation(name, each, document) for name, each in document["operations"].items()),
        "<h2>Channels</h2>",
        *(_channel(name, each) for name, each in document["channels"].items()),
        "<h2>Schemas</h2>",
        *(_schema(name, each) for name, each in document.get("components", {}).get("schemas", {}).items()),
        f"<h2>The document</h2><details><summary>AsyncAPI {escape(document['asyncapi'])}</summary>{_json(document)}",
        "</details>",
    ]
    title = f"<title>{escape(info['title'])}</title>"
    view = '<meta name="viewport" content="width=device-width">'
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{view}{title}<style>{_STYLE}</style></head>'
    return "\n".join([head, "<body>", *parts, "</body></html>", ""])


def _servers(servers: Mapping[str, Any]) -> Iterable[str]:
    if servers:
        rows = [(_code(name), escape(each["protocol"]), _code(each["host"])) for name, each in servers.items()]
        yield "<h2>Servers</h2>"
        yield _table(("server", "protocol", "host"), rows)


def _operation(name: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    channel = _last(operation["channel"])
    told = document["channels"][channel]
    messages = operation.get("messages") or [{"$ref": f"/{key}"} for key in told["messages"]]
    named = ", ".join(escape(told["messages"][_last(each)]["title"]) for each in messages)
    action = operation["action"]
    return (
        f'<section id="operation-{escape(name)}"><h3><span class="{action}">{action}</span> {escape(name)}</h3>'
        f"{_told(operation)}<p>channel {_link('channel', channel)}: {named}</p></section>"
    )


def _channel(name: str, channel: Mapping[str, Any]) -> str:
    address = "" if channel["address"] is None else f"<p>address {_code(channel['address'])}</p>"
    rows = [(_code(each["title"]), _payload(each.get("payload"))) for each in channel["messages"].values()]
    return (
        f'<section id="channel-{escape(name)}"><h3>{escape(name)}</h3>{address}{_told(channel)}'
        f"{_table(('message', 'payload'), rows)}</section>"
    )


def _payload(schema: Any) -> str:
    if schema is None:
        return "any JSON"
    every = schema.get("allOf", [schema])
    return " and ".join(_link("schema", _last(each)) if "$ref" in each else _json(each) for each in every)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (_code(field), _kind(each), "yes" if field in required else "", escape(_text(each, "description")))
        for field, each in schema.get("properties", {}).items()
    ]
    fields = _table(("field", "type", "required", ""), rows) if rows else ""
    return (
        f'<section id="schema-{escape(name)}"><h3>{escape(name)}</h3>{_told(schema)}{fields}'
        f"<details><summary>JSON schema</summary>{_json(schema)}</details></section>"
    )


def _kind(schema: Any) -> str:
    """A field's type in a word or two."""
    if not isinstance(schema, dict):
        return ""
    if "$ref" in schema:
        return _link("schema", _last(schema))
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " | ".join(map(_kind, schema[word]))
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return f"list of {_kind(items)}" if isinstance(items, dict) else "list"
    kind = schema.get("const", schema.get("format", schema.get("type", "any")))
    return escape(str(kind))


def _told(part: Mapping[str, Any]) -> str:
    told = "\n".join(each for word in ("summary", "description") if (each := _text(part, word)))
    return f'<p class="told">{escape(told)}</p>' if told else ""


def _text(part: Any, word: str) -> str:
    return str(part.get(word, "")) if isinstance(part, dict) else ""


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _json(value: Any) -> str:
    return f"<pre>{escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())}</pre>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _link(kind: str, name: str) -> str:
    return f'<a href="#{kind}-{escape(name)}">{escape(name)}</a>'


def _last(reference: Mapping[str, str]) -> str:
    return reference["$ref"].rpartition("/")[2]
