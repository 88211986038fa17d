"""`/connectors`: what is moved from where to where, to be looked at, paused and restarted.

Paths, statuses and states are those of Kafka Connect's REST API, so that its users and their tools find what they know.
What Connect keeps elsewhere (how many records were moved, how many are left) stands in the same object.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from synckit_streams.errors import SyncKitError
from synckit_streams.http.answers import answer, problem, refused
from synckit_streams.ports.operation import Pipelines, Standing

Act = Callable[[str], Awaitable[None]]


def connector_routes(pipelines: Pipelines) -> list[BaseRoute]:
    """The routes.

    Args:
        pipelines: What they are about.
    """
    look = _Looking(pipelines)
    routes: list[BaseRoute] = [
        Route("/connectors", look.all),
        Route("/connectors/{name}", look.one),
        Route("/connectors/{name}/status", look.status),
    ]
    # Connect pauses by PUT and restarts by POST; who mixes them up means the same.
    for verb, act, status in (
        ("pause", pipelines.pause, HTTPStatus.ACCEPTED),
        ("resume", pipelines.resume, HTTPStatus.ACCEPTED),
        ("restart", pipelines.restart, HTTPStatus.NO_CONTENT),
    ):
        routes.append(Route(f"/connectors/{{name}}/{verb}", _acting(pipelines, act, status), methods=["PUT", "POST"]))
    return routes


class _Looking:
    """The answers to GET."""

    def __init__(self, pipelines: Pipelines) -> None:
        self._pipelines = pipelines

    async def all(self, request: Request) -> Response:
        """The names; with `?expand=status` or `?expand=info` an object by name."""
        standings = self._pipelines.standings()
        parts = {"status": _status, "info": _info}
        wanted = [each for each in request.query_params.getlist("expand") if each in parts]
        if not wanted:
            return answer([each.name for each in standings])
        return answer({each.name: {part: parts[part](each) for part in wanted} for each in standings})

    async def one(self, request: Request) -> Response:
        """One of them, whole."""
        return self._of(request, _info)

    async def status(self, request: Request) -> Response:
        """One of them, as Connect tells how it is."""
        return self._of(request, _status)

    def _of(self, request: Request, show: Callable[[Standing], Any]) -> Response:
        name = request.path_params["name"]
        for each in self._pipelines.standings():
            if each.name == name:
                return answer(show(each))
        return _unknown(name)


def _info(standing: Standing) -> dict[str, Any]:
    return {
        **standing._asdict(),
        "config": {"source": standing.source, "sink": standing.sink},
        "tasks": [_task(standing)],
    }


def _task(standing: Standing) -> dict[str, Any]:
    return {"connector": standing.name, "task": 0}


def _status(standing: Standing) -> dict[str, Any]:
    state: dict[str, Any] = {"state": standing.state.upper(), "worker_id": "0"}
    if standing.error:
        state["trace"] = standing.error
    return {
        "name": standing.name,
        "connector": state,
        "tasks": [{"id": 0, **state}],
        "type": "source",
        "moved": standing.moved,
        "dead": standing.dead,
        "lag": standing.lag,
    }


def _acting(pipelines: Pipelines, act: Act, status: int) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        name = request.path_params["name"]
        # Not by catching KeyError, which may as well be a fault of what is paused.
        if all(each.name != name for each in pipelines.standings()):
            return _unknown(name)
        try:
            await act(name)
        except SyncKitError as error:
            found = refused(error)
            return refused(error, _as_connect(found.status_code, error.message))
        return Response(status_code=status)

    return endpoint


def _unknown(name: str) -> Response:
    message = f"there is no connector {name!r}"
    hint = "GET /connectors names those that there are"
    return problem(HTTPStatus.NOT_FOUND, message, hint=hint, more=_as_connect(HTTPStatus.NOT_FOUND, message))


def _as_connect(status: int, message: str) -> dict[str, Any]:
    return {"error_code": int(status), "message": message}
