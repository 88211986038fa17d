"""What an operator asks a running process over HTTP: one ASGI application, made of a list of routes for each question.

Whoever has an application of his own can mount this one, or take the routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from synckit_streams.errors import SyncKitError
from synckit_streams.http.answers import Guarded, of_http, of_ours
from synckit_streams.http.connectors import connector_routes
from synckit_streams.http.health import health_routes
from synckit_streams.http.hooks import hook_routes
from synckit_streams.http.metrics import Metrics, metrics_routes
from synckit_streams.observe.health import Health
from synckit_streams.ports.operation import Pipelines, Webhook


def operations(
    health: Health,
    *,
    metrics: Metrics | None = None,
    pipelines: Pipelines | None = None,
    hooks: Mapping[str, Webhook] | None = None,
    more: Sequence[BaseRoute] = (),
) -> Starlette:
    """The application. What is None has no routes, and is not found.

    Args:
        health: Answers probes.
        metrics: Gives a registry for Prometheus.
        pipelines: What `/connectors` shows, pauses and restarts.
        hooks: Takes what is posted to `/hooks/{name}`; it may change while we serve.
        more: Routes beside these.
    """
    routes = [*health_routes(health), *more]
    if metrics is not None:
        routes += metrics_routes(metrics)
    if pipelines is not None:
        routes += connector_routes(pipelines)
    if hooks is not None:
        routes += hook_routes(hooks)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guarded)],
        exception_handlers={HTTPException: of_http, SyncKitError: of_ours},
    )
