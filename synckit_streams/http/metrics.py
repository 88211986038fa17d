"""`/metrics`: what Prometheus scrapes, in the format that it asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from synckit_streams.http.answers import AnsweredBy
from synckit_streams.observe.exposition import Exposition

Metrics = Callable[[], Awaitable[Exposition]]
"""Gives what there is to tell just now."""


def metrics_routes(metrics: Metrics) -> list[BaseRoute]:
    """The route. The Prometheus client itself negotiates text or OpenMetrics, and gzip.

    Args:
        metrics: Asked at every scrape.
    """

    async def endpoint(request: Request) -> Response:
        return AnsweredBy((await metrics()).asgi())

    return [Route("/metrics", endpoint)]
