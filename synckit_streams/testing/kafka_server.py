"""Apache Kafka from its jars, as one process that is broker and controller (KRaft), for tests and for the demo."""

from __future__ import annotations

import base64
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from synckit_streams.errors import ConfigError, ConnectorError, MissingDependency
from synckit_streams.testing.server import Server, find_binary

JAVA_OPTIONS = ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
FORMAT_S = 60.0


def find_kafka() -> Path | None:
    """The directory with Kafka's jars: the one that SYNCKIT_KAFKA_JARS names, or `share/kafka` of this environment,
    where `make kafka` puts them.

    Raises:
        ConfigError: SYNCKIT_KAFKA_JARS names something else.
    """
    named = os.environ.get("SYNCKIT_KAFKA_JARS")
    for folder in [Path(named)] if named else [Path(sys.prefix) / "share" / "kafka"]:
        if any(folder.glob("kafka_2.13-*.jar")):
            return folder
    if named:
        raise ConfigError(f"SYNCKIT_KAFKA_JARS={named} has no Kafka in it", hint="it names a directory with the jars")
    return None


class KafkaServer(Server):
    """An Apache Kafka broker. Needs Java 17 and Kafka's jars.

    Args:
        directory: See `Server`.
        port: See `Server`.
        settings: More of its settings, as in `{"num.partitions": "3"}`.
        advertised: The port that it tells its clients to connect to, as a proxy before it needs; 0 is its own. From the
            next start on.
        jars: The directory with the jars; None takes `find_kafka()`.

    Raises:
        MissingDependency: Java or the jars are not on this machine.
    """

    name = "kafka"
    taken = "Address already in use"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        settings: dict[str, str] | None = None,
        advertised: int = 0,
        jars: Path | None = None,
    ) -> None:
        java, found = find_binary("java", "SYNCKIT_JAVA"), jars or find_kafka()
        if java is None:
            raise MissingDependency("there is no Java on this machine", hint="Kafka needs Java 17 or newer")
        if found is None:
            raise MissingDependency("Kafka's jars are not on this machine", hint="make kafka fetches them with Maven")
        super().__init__(directory, port)
        self.settings = dict(settings or {})
        self.advertised = advertised
        self._java: list[str | Path] = [java, *JAVA_OPTIONS, "-cp", f"{found.absolute()}/*"]
        self._said = 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"kafka://127.0.0.1:{self.port}"

    def _command(self, token: str, port: int) -> Sequence[str | Path]:
        controller = _free_port()
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.advertised or port}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.store_dir),
            "auto.create.topics.enable": "false",
            # After a kill the broker may come back when its registration has run out.
            "broker.session.timeout.ms": "1000",
            "broker.heartbeat.interval.ms": "200",
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            **self.settings,
        }
        config = self.directory / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        if not (self.store_dir / "meta.properties").exists():
            self._format(config)
        self._said = self.log.stat().st_size if self.log.exists() else 0
        return [*self._java, "kafka.Kafka", config]

    def _format(self, config: Path) -> None:
        cluster = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=").replace("-", "a")
        done = subprocess.run(
            [*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", config],
            capture_output=True,
            text=True,
            timeout=FORMAT_S,
            check=False,
        )
        if done.returncode:
            raise ConnectorError(f"Kafka's directory could not be made: {done.stdout}{done.stderr}")

    def _ready(self, token: str, port: int) -> bool:
        # Its log is ours alone, so what stands there is of this very process.
        with self.log.open("rb") as log:
            log.seek(self._said)
            return b"Kafka Server started" in log.read()


class NoidaServer(Server):
    """noida-db, which speaks Kafka's protocol: what stands in for Kafka where there is no Java.

    It forgets everything when it ends, sends a consumer more at a time than that asks for, and does not let two members
    of a group share a topic.

    Args:
        directory: See `Server`.
        port: See `Server`.
        binary: The program; None takes the file that SYNCKIT_NOIDA_DB names, or the one in the wheel noida-db.

    Raises:
        MissingDependency: There is none on this machine.
    """

    name = "noida-db"
    taken = "already in use"

    def __init__(self, directory: Path | None = None, *, port: int = 0, binary: Path | None = None) -> None:
        found = binary or _find_noida()
        if found is None:
            raise MissingDependency(
                "there is no noida-db on this machine", hint="pip install 'synckit-streams[embedded]'"
            )
        super().__init__(directory, port)
        self.binary = found
        self._said = 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"kafka://127.0.0.1:{self.port}"

    def _command(self, token: str, port: int) -> Sequence[str | Path]:
        self._said = self.log.stat().st_size if self.log.exists() else 0
        return [self.binary, "start", "--data-dir", self.store_dir, "--only", "kafka", "--kafka-port", str(port)]

    def _ready(self, token: str, port: int) -> bool:
        # Its log is ours alone, so what stands there is of this very process.
        with self.log.open("rb") as log:
            log.seek(self._said)
            return f"127.0.0.1:{port}\n".encode() in log.read() and answers("127.0.0.1", port)


def _find_noida() -> Path | None:
    if os.environ.get("SYNCKIT_NOIDA_DB"):
        return find_binary("noida-db", "SYNCKIT_NOIDA_DB")
    wheel = find_spec("noida_db")
    folders = wheel.submodule_search_locations if wheel else None
    # Not the command beside the interpreter: that is a Python program which starts this one.
    return next((path for folder in folders or [] if (path := Path(folder) / "noida-db").is_file()), None)


def local_kafka(directory: Path | None = None) -> KafkaServer | NoidaServer:
    """Apache Kafka, or what stands in for it where Java or the jars are not there.

    Raises:
        MissingDependency: There is neither.
    """
    try:
        return KafkaServer(directory)
    except MissingDependency as apache:
        try:
            return NoidaServer(directory)
        except MissingDependency as noida:
            raise MissingDependency(
                f"{apache.message}; {noida.message}", hint=f"{apache.hint}; or {noida.hint}"
            ) from None


def answers(host: str, port: int) -> bool:
    """Whether it answers a client that asks which requests it knows (ApiVersions, version 0).

    Source: https://kafka.apache.org/protocol#protocol_messages
    """
    ask = b"\0\x12\0\0\0\0\0\x01\0\0"
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(len(ask).to_bytes(4, "big") + ask)
            return len(connection.recv(8)) == 8
    except OSError:
        return False


def _free_port() -> int:
    """For the controller, which nobody but the broker itself connects to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
