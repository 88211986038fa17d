"""`synckit asyncapi`: what an app receives and sends, as a document of AsyncAPI 3 or as a page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synckit_streams.app.app import App
from synckit_streams.app.asyncapi import as_json, as_yaml, asyncapi
from synckit_streams.app.asyncapi_page import to_html
from synckit_streams.cli.loading import load
from synckit_streams.cli.terminal import JsonFlag, carry_out, note
from synckit_streams.errors import ConfigError


def describe(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, e.g. shop.billing:app")],
    html: Annotated[bool, typer.Option("--html", help="As a page for people.")] = False,
    yaml: Annotated[bool, typer.Option("--yaml", help="As YAML in place of JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there.", show_default=False)
    ] = None,
    version: Annotated[str, typer.Option("--app-version", metavar="TEXT", help="Version of the app.")] = "1.0.0",
    json: JsonFlag = False,
) -> None:
    """Say what an app receives and sends: a document of AsyncAPI 3, in JSON.

    It is read from the app's declarations: no broker and no store is asked. Passwords are left out.

    [bold]Examples[/bold]

      $ synckit asyncapi shop.billing:app > asyncapi.json
      $ synckit asyncapi shop.billing:app --html --out asyncapi.html
    """

    async def work() -> None:
        if html and yaml:
            raise ConfigError("--html and --yaml are two things", hint="choose one of them")
        app = load(target)
        if not isinstance(app, App):
            raise ConfigError(
                f"{target} is of {type(app).__name__!r}, and no App", hint="only an App says what it takes"
            )
        document = asyncapi(app, version=version)
        text = to_html(document) if html else as_yaml(document) if yaml else as_json(document)
        if out is None:
            typer.echo(text, nl=False)
            return
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
        note(f"{out} is written", quiet=json)

    carry_out(work, json=json)
