"""Where a test gets a server from: one that is named, a container, or a program on this machine.

They are tried in this order; whoever passes one over says why, so that a test that is skipped, or fails under
`SYNCKIT_TEST_REQUIRE=all`, names everything that was missing.

A container is started only where a Docker engine answers at once and *has* the image: a test that waits for minutes for
a registry, or fails because there is none, is worse than one that takes the program on this machine. `docker pull`, or
SYNCKIT_TEST_PULL=1, brings an image.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from synckit_streams.errors import ConfigError, MissingDependency, Timeout
from synckit_streams.testing import kafka_server
from synckit_streams.testing.brokers import NatsServer, RedisServer, info, resp
from synckit_streams.testing.postgres_server import USER, PostgresServer, answers
from synckit_streams.testing.server import Server

ENGINE_S: Final = 2.0
"""An engine that has not answered by then is not there."""
READY_S: Final = 60.0
POLL_S: Final = 0.05
ALL: Final = ("url", "container", "local")


@dataclass(frozen=True)
class Kind:
    """A kind of server, and how each source makes one.

    Args:
        name: As fixtures and environment variables have it.
        local: Makes one from a program on this machine, not yet started.
        image: What a container is made of, unless SYNCKIT_TEST_{NAME}_IMAGE says otherwise.
        port: Where it listens in the container.
        url: Of a host and a port.
        ready: Whether what listens there lets clients in.
        stand_in: Makes something on this machine that speaks the same language, where `local` cannot.
        command: What the container is told to run.
        environment: Of the container; of its port outside.
        fixed: The port outside has to be known before it starts.
    """

    name: str
    local: Callable[[Path], Server]
    image: str
    port: int
    url: Callable[[str, int], str]
    ready: Callable[[str, int], bool]
    stand_in: Callable[[Path], Server] | None = None
    command: Sequence[str] = ()
    environment: Callable[[int], Mapping[str, str]] = lambda port: {}
    fixed: bool = False


class Found(NamedTuple):
    """A server that runs: its URL, and where it is from."""

    url: str
    source: str


def _kafka_settings(port: int) -> Mapping[str, str]:
    """Source: https://kafka.apache.org/documentation/#docker (each setting in capitals, behind KAFKA_)."""
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }


NATS: Final = Kind(
    "nats",
    NatsServer,
    image="nats:2",
    port=4222,
    url=lambda host, port: f"nats://{host}:{port}",
    ready=lambda host, port: bool(info(port, host).get("jetstream")),
    command=("-js",),
)
REDIS: Final = Kind(
    "redis",
    RedisServer,
    image="valkey/valkey:9",
    port=6379,
    url=lambda host, port: f"redis://{host}:{port}",
    ready=lambda host, port: resp(port, [["PING"]], host).endswith(b"+PONG\r\n"),
    # Clients of a container come from outside of it; the images from the registry have the mode off anyway.
    command=("--appendonly", "yes", "--save", "", "--protected-mode", "no"),
)
KAFKA: Final = Kind(
    "kafka",
    kafka_server.KafkaServer,
    image="apache/kafka:4.1.0",
    port=9092,
    url=lambda host, port: f"kafka://{host}:{port}",
    ready=kafka_server.answers,
    stand_in=kafka_server.NoidaServer,
    environment=_kafka_settings,
    fixed=True,
)
# In a directory of its own, since root's tests have theirs where nobody else may look.
POSTGRES: Final = Kind(
    "postgres",
    lambda directory: PostgresServer(),
    image="postgres:18-alpine",
    port=5432,
    url=lambda host, port: f"postgresql://{USER}@{host}:{port}/{USER}",
    ready=lambda host, port: answers(port, host),
    environment=lambda port: {"POSTGRES_HOST_AUTH_METHOD": "trust"},
)


@contextmanager
def serving(kind: Kind, directory: Path, environ: Mapping[str, str] = os.environ) -> Iterator[Found]:
    """A running server of a kind, from the first source that has one; gone afterwards, unless it was named.

    Args:
        kind: Of what.
        directory: For one from this machine.
        environ: SYNCKIT_TEST_SOURCES names the sources that may be used, as in "url,local"; the others are in the
            module's text.

    Raises:
        MissingDependency: No source has one; the message says why each was passed over.
        ConfigError: SYNCKIT_TEST_SOURCES names something else.
    """
    allowed = [word.strip() for word in environ.get("SYNCKIT_TEST_SOURCES", ",".join(ALL)).split(",")]
    if unknown := set(allowed) - set(ALL):
        raise ConfigError(f"SYNCKIT_TEST_SOURCES: {', '.join(sorted(unknown))}?", hint=f"it may name {', '.join(ALL)}")
    why: list[str] = []
    for source in ALL:
        if source not in allowed:
            why.append(f"{source} is not among SYNCKIT_TEST_SOURCES")
        elif source == "url":
            variable = f"SYNCKIT_TEST_{kind.name.upper()}_URL"
            if environ.get(variable):
                yield Found(environ[variable], variable)
                return
            why.append(f"{variable} is not set")
        elif source == "container":
            image = environ.get(f"SYNCKIT_TEST_{kind.name.upper()}_IMAGE") or kind.image
            if not (reason := _no_container(image, pull=environ.get("SYNCKIT_TEST_PULL") == "1")):
                with _container(kind, image) as url:
                    yield Found(url, f"container {image}")
                return
            why.append(reason)
        else:
            for make in filter(None, (kind.local, kind.stand_in)):
                try:
                    server = make(directory)
                except MissingDependency as missing:
                    why.append(str(missing))
                    continue
                with server:
                    yield Found(server.url, f"local {server.name}")
                return
    raise MissingDependency(
        f"no {kind.name} server: {'; '.join(why)}", hint="docs/how-to/test-with-brokers.md says where they come from"
    )


def _no_container(image: str, *, pull: bool) -> str:
    """Why there can be no container of that image; "" if there can."""
    try:
        import docker.client
        import docker.errors
        import testcontainers.core.container  # noqa: F401 - both are needed
    except ModuleNotFoundError as missing:
        return f"no container, since {missing.name} is not installed (pip install 'synckit-streams[test]')"
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not listens(host):
        return f"no Docker engine at {host}"
    try:
        engine = docker.client.from_env(timeout=ENGINE_S)
    except docker.errors.DockerException as error:
        return f"no Docker engine at {host} ({error})"
    try:
        engine.images.get(image)
    except docker.errors.ImageNotFound:
        return "" if pull else f"the Docker engine has no image {image} (docker pull {image}, or SYNCKIT_TEST_PULL=1)"
    except Exception as error:  # noqa: BLE001 - whatever its client raises: no engine that could be used
        return f"the Docker engine at {host} does not answer ({error})"
    finally:
        engine.close()
    return ""


def listens(host: str) -> bool:
    """Whether somebody listens where DOCKER_HOST says; of an address that is no file, that is not known yet.

    Docker's own client leaves a socket open where it is refused.
    """
    if not host.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ENGINE_S)
        try:
            probe.connect(host.removeprefix("unix://"))
        except OSError:
            return False
    return True


@contextmanager
def _container(kind: Kind, image: str) -> Iterator[str]:
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # Ryuk removes what a killed run left behind, and is an image of its own: where that is not there, we do without.
    if _no_container(testcontainers_config.ryuk_image, pull=False):
        testcontainers_config.ryuk_disabled = True
    outside = _free_port() if kind.fixed else None
    container: Any = DockerContainer(image).with_bind_ports(kind.port, outside)
    for name, value in kind.environment(outside or 0).items():
        container.with_env(name, value)
    if kind.command:
        container.with_command(list(kind.command))
    with container:
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(kind.port))
        deadline = time.monotonic() + READY_S
        while not kind.ready(host, port):
            if time.monotonic() >= deadline:
                said = b"".join(container.get_logs()).decode(errors="replace")[-2_000:]
                raise Timeout(f"a container of {image} was not ready within {READY_S:g} s; it said:\n{said}")
            time.sleep(POLL_S)
        yield kind.url(host, port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
