"""`/health…` and `/ping`: for probes, load balancers and people; the paths and bodies are go-sync-kit's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from synckit_streams.http.answers import answer
from synckit_streams.observe.health import Health, Report


def health_routes(health: Health) -> list[BaseRoute]:
    """The routes.

    Args:
        health: Who is asked.
    """
    return [
        _route("/health", health.report),
        _route("/health/live", health.live),
        _route("/health/ready", health.ready),
        _route("/health/startup", health.startup),
        Route("/health/components", _components(health)),
        Route("/ping", _ping),
    ]


def _told(report: Report, **more: object) -> Response:
    status = HTTPStatus.OK if report.serving else HTTPStatus.SERVICE_UNAVAILABLE
    return answer({**report.body(), **more}, status)


def _route(path: str, ask: Callable[[], Awaitable[Report]]) -> BaseRoute:
    async def endpoint(request: Request) -> Response:
        return _told(await ask())

    return Route(path, endpoint)


def _components(health: Health) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        report = await health.report("components")
        components = sorted({each.component for each in report.results.values()})
        return _told(report, components=components, count=len(components))

    return endpoint


async def _ping(request: Request) -> Response:
    return PlainTextResponse("pong", headers={"cache-control": "no-store"})
