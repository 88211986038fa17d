"""A Docker engine of the tests' own, and images made of programs on this machine: no registry is asked for anything."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import docker.api
import docker.client
import docker.errors

from synckit_streams.errors import MissingDependency
from synckit_streams.testing.server import Server, find_binary
from synckit_streams.testing.sources import listens

BRIDGE = Path("/sys/class/net/docker0")


class DockerEngine(Server):
    """A dockerd with a directory of its own. Needs root, and the Debian package docker.io or its like.

    Without rules of its own for the firewall: what a container listens on is reached over this machine's loopback.
    """

    name = "dockerd"
    taken = ""

    def __init__(self, directory: Path | None = None) -> None:
        found = find_binary("dockerd")
        if found is None:
            raise MissingDependency("there is no dockerd on this machine", hint="apt-get install docker.io")
        if os.geteuid() != 0:
            raise MissingDependency("a Docker engine has to be started by root", hint="or let DOCKER_HOST name one")
        super().__init__(directory, port=1)  # it listens on a socket in its directory
        self.binary = found
        self._bridged = BRIDGE.exists()

    def close(self) -> None:
        """See `Server`. An engine leaves the bridge that it made."""
        super().close()
        if not self._bridged and BRIDGE.exists():
            subprocess.run(["ip", "link", "delete", BRIDGE.name], check=True)

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.directory}/docker.sock"

    def _command(self, token: str, port: int) -> Sequence[str | Path]:
        own = [f"--{what}={self.directory / what}" for what in ("data-root", "exec-root")]
        # ip-forward: nobody's settings of this machine are changed.
        off = ["--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        return [self.binary, "-H", self.url, "--pidfile", self.directory / "pid", *own, *off]

    def _ready(self, token: str, port: int) -> bool:
        return answers(self.url)


def answers(url: str) -> bool:
    """Whether a Docker engine answers there."""
    if not listens(url):
        return False
    try:
        client = docker.client.DockerClient(base_url=url, timeout=2)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False
    finally:
        client.close()


def image_of(url: str, tag: str, program: Path) -> None:
    """Make an image of a program and the libraries that it is linked with; also of its loader."""
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    files = [Path(word) for word in libraries.split() if word.startswith("/")]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in files:
            archive.add(path.resolve(), arcname=str(path))
        archive.add(program.resolve(), arcname=f"/{program.name}")
        for folder in ("tmp", "data"):
            made = tarfile.TarInfo(folder)
            made.type, made.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(made)
    # `docker import` of the command line, over the engine's own interface.
    client = docker.api.APIClient(base_url=url)
    try:
        changes = [f'ENTRYPOINT ["/{program.name}"]', "WORKDIR /data"]
        client.import_image_from_data(packed.getvalue(), repository=tag, tag="latest", changes=changes)
    finally:
        client.close()


def remove(url: str, tag: str) -> None:
    """Remove an image."""
    client = docker.client.DockerClient(base_url=url)
    try:
        client.images.remove(f"{tag}:latest", force=True)
    finally:
        client.close()
